"""One run of a study: its command line, and whether it has finished."""

from dataclasses import dataclass
from pathlib import Path

from configs.schema import FinetuneConfig, PretrainConfig
from data.sampling import largest_divisor
from scripts.study.arms import Measure
from scripts.study.read_runs import LABELS_FOLDER, decisions_of_probe
from scripts.study.scores_csv import config_name
from utils.config import keys_affecting, to_dict, yaml_text
from utils.errors import UserError
from utils.run.reading import differing, flat, read_json, resolved_config
from utils.scoring.sizes import KEYS as SIZES

# A finished run may differ from its plan in these: where it worked, and what it left behind.
FREE = keys_affecting(PretrainConfig, "nothing") | keys_affecting(FinetuneConfig, "nothing")
# These a plan may leave open (null or auto). The run then writes the value that it has chosen.
CHOSEN_BY_THE_RUN = ("train.images_per_device", "train.precision", "model.channels_last")
# These decide a probe, besides run.use_ema and its pretraining.
PROBE_SETTINGS = (*SIZES, "data.label_fraction", "data.holdout_fraction", "data.train_list", "run.probe_storage")
PRETRAINING, FINETUNING, PROBE = "pretraining", "finetuning", "probe"  # kinds of runs


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """A run of the study.

    Args:
        kind: PRETRAINING, FINETUNING or PROBE.
        folder: of the run; for a probe, where its result goes.
        words: of its command line.
        needs: the pretraining whose weights it starts from, or probes.
    """

    kind: str
    folder: Path
    words: list[str]
    config: PretrainConfig | FinetuneConfig
    needs: "PlannedRun | None"

    @property
    def entry(self) -> str:
        return "pretrain.py" if self.kind == PRETRAINING else "finetune.py"

    def config_name(self) -> str:
        """What the runs of one arm and share of the labels, or of one pretraining, have in common: a file's name."""
        if self.kind == PRETRAINING:
            return f"pretrain_{self.folder.parent.name}"
        if self.kind == PROBE:
            return f"probe_{self.needs.folder.parent.name}"
        folder = self.folder.parent
        if folder.name.startswith(LABELS_FOLDER):
            return config_name(Measure(labels=self.config.data.label_fraction), folder.parent.name)
        return config_name(Measure(), folder.name)

    def finished(self) -> bool:
        """Whether there is a result. Raises: UserError if it is one of another config than the study's."""
        if self.kind == PROBE:
            return self.has_probe()
        if not (self.folder / "result.json").is_file():
            return False
        free = FREE
        if self.needs is None:  # else its weights are those of a run of the study, wherever that lies
            free = FREE - {"run.weights"}
        changed = changes(self.folder, self.config, free, ranks_of(self.folder))
        if self.needs:
            ranks = ranks_of(self.needs.folder)
            pretraining = changes(self.folder / "pretraining.yaml", self.needs.config, FREE, ranks)
            for key, pair in pretraining.items():
                changed[f"pretraining's {key}"] = pair
        self.check_nothing_changed(changed)
        return True

    def check_nothing_changed(self, changed: dict[str, tuple]) -> None:
        if not changed:
            return
        differences = "; ".join(
            f"{key}: {yaml_text(before)} -> {yaml_text(now)}" for key, (before, now) in changed.items()
        )
        raise UserError(
            f"{self.folder}: finished with another config than the study's ({differences}); "
            "take the change back, or remove this folder, or give another --output-dir"
        )

    def probe_result(self) -> dict:
        """What a probe has written about the last checkpoint of its pretraining, with the planned settings if it has.

        Empty if there is none.
        """
        steps = read_json(self.needs.folder / "result.json").get("steps")
        results = [read_json(path) for path in sorted(self.folder.glob("probe_*.json"))]
        of_last = [result for result in results if result["checkpoint"]["step"] == steps]
        of_last.sort(key=lambda result: bool(self.other_settings(result)))
        return of_last[0] if of_last else {}

    def other_settings(self, result: dict) -> dict[str, tuple]:
        """The settings of a probe that are not the planned ones, as key -> (its, planned)."""
        planned, decided_by = flat(to_dict(self.config)), decisions_of_probe(result)
        settings = {"run.use_ema": result["checkpoint"]["weights"] == "ema"}
        for key in PROBE_SETTINGS:
            _, name = key.split(".")
            settings[key] = decided_by[name]
        return differing(settings, {key: planned[key] for key in settings})

    def has_probe(self) -> bool:
        result = self.probe_result()
        if result:
            self.check_nothing_changed(self.other_settings(result))
        return bool(result)

    def seconds(self) -> float | None:
        """How long the run took. None: it has not finished, or was resumed, so that only its last part was timed."""
        result = self.probe_result() if self.kind == PROBE else read_json(self.folder / "result.json")
        if result.get("resumed"):
            return None
        return result.get("seconds")


def ranks_of(folder: Path) -> int | None:
    """Processes of a finished run; None if its result.json does not say."""
    ranks = read_json(folder / "result.json").get("provenance", {}).get("world_size")
    return None if ranks is None else int(ranks)


def changes(
    path: Path, config: PretrainConfig | FinetuneConfig, free: frozenset[str], ranks: int | None
) -> dict[str, tuple]:
    """The keys in which a finished run differs from its plan, as key -> (before, planned).

    Args:
        path: the run's folder, or a YAML file with its config.
        config: as planned.
        free: keys that may differ.
        ranks: processes of the run; None: unknown.
    """
    planned, finished = flat(to_dict(config)), resolved_config(str(path))
    changed = differing(finished, planned)
    for key in free & changed.keys():
        del changed[key]
    for key in CHOSEN_BY_THE_RUN:
        if planned[key] in (None, "auto"):
            changed.pop(key, None)
    before, most = changed.get("train.images_per_device", (None, None))
    if before is not None and most is not None and is_lowered(before, most, finished["train.batch_size"], ranks):
        del changed["train.images_per_device"]
    return changed


def is_lowered(images: int, most: int, batch_size: int, ranks: int | None) -> bool:
    """Whether a run takes so many images at once since the most that is planned does not divide its ranks' batches."""
    if ranks is None:
        return images < most
    return images == largest_divisor(batch_size // ranks, most)
