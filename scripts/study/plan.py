"""What a study's YAML asks for: every run of its grid, with its command line and its config."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.schema import FinetuneConfig, PretrainConfig, Problems, knob
from scripts.study.arms import Measure
from scripts.study.read_runs import LABELS_FOLDER
from scripts.study.scores_csv import config_name
from utils.config import Values, build, keys_affecting, parse_command_line, read_yaml, to_dict, yaml_text
from utils.errors import UserError
from utils.run.reading import differing, flat, read_json, resolved_config

# A finished run may differ from its plan in these: where it worked, and what it left behind.
FREE = keys_affecting(PretrainConfig, "nothing") | keys_affecting(FinetuneConfig, "nothing")
# These a plan may leave open (null or auto). The run then writes the value that it has chosen.
CHOSEN_BY_THE_RUN = ("train.images_per_device", "train.precision")
PRETRAINING, FINETUNING, PROBE = "pretraining", "finetuning", "probe"  # kinds of runs


@dataclass(frozen=True)
class GridOptions:
    pretrain: str = knob("", "words of every pretraining's command line")
    finetune: str = knob("", "words of every finetuning's command line")
    probe: str = knob("", "words of the command line that probes each finished pretraining; empty: no probes")
    label_fractions: tuple[float, ...] = knob(
        (1.0,), "shares of the labels; every arm is finetuned with each of them", above=0, high=1
    )
    at_steps: tuple[int, ...] = knob((), "score finetunings after so many steps too", "steps", low=1)
    pretrain_seeds: tuple[int, ...] = knob((0,), "of each pretraining", low=0)
    finetune_seeds: tuple[int, ...] = knob((0,), "of each pretraining's finetunings", low=0, high=999)
    scratch_seeds: tuple[int, ...] = knob((0,), "of the arms without pretraining", low=0)
    baseline: tuple[str, ...] = knob(("scratch",), "arms that others are compared to")
    factor: tuple[str, ...] = knob(("pretraining",), "keys whose effect is studied")
    processes: int = knob(1, "GPUs, and so processes, of a run; on a CPU it is one process", low=1)
    pretrain_minutes: float = knob(60.0, "expected, of a pretraining", "minutes", above=0)
    finetune_minutes: float = knob(60.0, "expected, of a finetuning with its evaluation", "minutes", above=0)
    probe_minutes: float = knob(5.0, "expected, of a probe", "minutes", above=0)


@dataclass(frozen=True)
class StudyConfig:
    """The section `study` of a study's YAML; `pretrainings` and `arms` hold command lines under names of your own."""

    study: GridOptions = GridOptions()

    def problems(self) -> Problems:
        problems = []
        for key in ("pretrain_seeds", "finetune_seeds", "scratch_seeds", "label_fractions", "at_steps"):
            values = getattr(self.study, key)
            if len(set(values)) < len(values):
                problems.append((f"study.{key}", "must not name a value twice"))
        return problems


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
        changed = changes(self.folder, self.config, free)
        if self.needs:
            pretraining = changes(self.folder / "pretraining.yaml", self.needs.config, FREE)
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
        """What a probe has written about the last checkpoint of its pretraining; empty if it has not."""
        steps = read_json(self.needs.folder / "result.json").get("steps")
        for path in sorted(self.folder.glob("probe_*.json")):
            content = read_json(path)
            if content["checkpoint"]["step"] == steps:
                return content
        return {}

    def has_probe(self) -> bool:
        decided_by = self.probe_result().get("decided_by")
        if decided_by is None:
            return False
        planned = flat(to_dict(self.config))
        changed = {}
        for key in ("val_resize_size", "val_crop_size", "interpolation"):
            if decided_by[key] != planned[f"data.{key}"]:
                changed[f"data.{key}"] = decided_by[key], planned[f"data.{key}"]
        self.check_nothing_changed(changed)
        return True

    def seconds(self) -> float | None:
        """How long the run took. None: it has not finished, or was resumed, so that only its last part was timed."""
        result = self.probe_result() if self.kind == PROBE else read_json(self.folder / "result.json")
        if result.get("resumed"):
            return None
        return result.get("seconds")


def changes(path: Path, config: PretrainConfig | FinetuneConfig, free: frozenset[str]) -> dict[str, tuple]:
    """The keys in which a finished run differs from its plan, as key -> (before, planned).

    Args:
        path: the run's folder, or a YAML file with its config.
        config: as planned.
        free: keys that may differ.
    """
    planned = flat(to_dict(config))
    changed = differing(resolved_config(str(path)), planned)
    for key in free & changed.keys():
        del changed[key]
    for key in CHOSEN_BY_THE_RUN:
        if planned[key] in (None, "auto"):
            changed.pop(key, None)
    return changed


@dataclass
class Study:
    """A study as its YAML states it.

    Args:
        path: of the YAML, for errors.
        output: the folder for all runs.
        pretrainings: name -> words of pretrain.py's command line.
        arms: name -> "finetune": words of finetune.py's command line, and "pretraining": one of these names.
    """

    path: str
    output: Path
    grid: GridOptions
    pretrainings: dict[str, Any]
    arms: dict[str, Any]
    runs: list[PlannedRun] = field(default_factory=list)  # each pretraining before its finetunings

    def check(self, good: bool, key: str, problem: str) -> None:
        if not good:
            raise UserError(f"{self.path}: {key}: {problem}")

    def check_names(self) -> None:
        """Raises: UserError if pretrainings and arms do not fit together."""
        self.check(bool(self.arms), "arms", "must name at least one arm")
        for name, words in self.pretrainings.items():
            is_text = isinstance(words, str)
            self.check(is_text, f"pretrainings.{name}", "must be words of pretrain.py's command line")
        for name, arm in self.arms.items():
            problem = (
                "must hold `finetune: words`, `pretraining: NAME` unless it has none, and perhaps words for a share of "
                "study.label_fractions, as in `0.01: optimizer.learning_rate=1e-3`"
            )
            self.check(is_arm(name, arm, self.grid.label_fractions), f"arms.{name}", problem)
            known = ", ".join(self.pretrainings) or "none"
            if "pretraining" in arm:
                is_known = arm["pretraining"] in self.pretrainings
                self.check(is_known, f"arms.{name}.pretraining", f"must be one of {known}")
        used = {arm["pretraining"] for arm in self.arms.values() if "pretraining" in arm}
        self.check(used == set(self.pretrainings), "pretrainings", "one is used by no arm; remove it")
        self.check(set(self.grid.baseline) <= set(self.arms), "study.baseline", "must name arms")

    def plan_runs(self) -> None:
        """Raises: UserError naming the pretraining or arm whose command line is wrong."""
        for seed in self.grid.pretrain_seeds:
            self.plan_pretrainings(seed)
        for seed in self.grid.scratch_seeds:
            for name, arm in self.arms.items():
                if "pretraining" not in arm:
                    self.plan_finetunings(name, seed, needs=None, folder=f"f{seed}")

    def plan_pretrainings(self, seed: int) -> None:
        """Every pretraining with this seed, their probes and their finetunings."""
        pretrained = {}
        for name, words in self.pretrainings.items():
            pretrained[name] = self.planned(
                key=f"pretrainings.{name}",
                kind=PRETRAINING,
                folder=self.output / "pretrain" / name / f"p{seed}",
                words=f"{self.grid.pretrain} {words} run.seed={seed}",
                needs=None,
            )
        self.runs += pretrained.values()
        if self.grid.probe:
            self.runs += [self.probe(pretraining) for pretraining in pretrained.values()]
        for name, arm in self.arms.items():
            if "pretraining" not in arm:
                continue
            for number in self.grid.finetune_seeds:
                finetune_seed = 1000 * seed + number  # so no two finetunings of an arm share their luck
                needs = pretrained[arm["pretraining"]]
                self.plan_finetunings(name, finetune_seed, needs, folder=f"p{seed}_f{finetune_seed}")

    def probe(self, pretraining: PlannedRun) -> PlannedRun:
        return self.planned(
            key="study.probe",
            kind=PROBE,
            folder=pretraining.folder / "evaluations",  # where results about its checkpoints lie anyway
            words=f"{self.grid.probe} --probe",
            needs=pretraining,
        )

    def plan_finetunings(self, arm: str, seed: int, needs: PlannedRun | None, folder: str) -> None:
        """One with each share of the labels. They have equal seeds, as their scores are not compared."""
        words = f"{self.grid.finetune} {self.arms[arm].get('finetune', '')} run.seed={seed}"
        for share in self.grid.label_fractions:
            words_of_share, folder_of_arm = words, self.output / "finetune" / arm
            if self.grid.label_fractions != (1.0,):
                words_of_share += f" {self.words_at(arm, share)} data.label_fraction={share:g}"
                folder_of_arm = folder_of_arm / f"{LABELS_FOLDER}{share:g}"
            run = self.planned(
                key=f"arms.{arm}", kind=FINETUNING, folder=folder_of_arm / folder, words=words_of_share, needs=needs
            )
            self.runs.append(run)

    def words_at(self, arm: str, share: float) -> str:
        """The words that an arm has for one share of the labels alone."""
        for key, words in self.arms[arm].items():
            if as_share(key) == share:
                return words
        return ""

    def planned(self, *, key: str, kind: str, folder: Path, words: str, needs: PlannedRun | None) -> PlannedRun:
        """A run with its config. Raises: UserError naming `key` if the command line is wrong."""
        command_line = [*shlex.split(words), "--output-dir", str(folder)]
        if needs:
            command_line += ["--weights", str(needs.folder / "checkpoints" / "last.pt")]
        config_class = PretrainConfig if kind == PRETRAINING else FinetuneConfig
        try:
            config = parse_command_line(config_class, command_line, "")
        except UserError as error:
            raise UserError(f"{self.path}: {key}: {error}") from error
        return PlannedRun(kind, folder, command_line, config, needs)


def is_arm(name: str, arm: object, label_fractions: tuple[float, ...]) -> bool:
    """Whether an arm has a name for a folder, and holds texts under the keys that arms have."""
    if "/" in name or not isinstance(arm, dict):
        return False
    for key, value in arm.items():
        known = key in ("pretraining", "finetune") or as_share(key) in label_fractions
        if not known or not isinstance(value, str):
            return False
    return True


def as_share(key: object) -> float | None:
    """The share that a key of an arm names, if it names one."""
    return float(key) if isinstance(key, int | float) else None


def taken_section(values: Values, section: str) -> dict[str, Any]:
    """The keys of one section, taken out of `values`."""
    keys = [key for key in values if key.startswith(f"{section}.")]
    return {key.removeprefix(f"{section}."): values.pop(key)[0] for key in keys}


def read_study(path: str, output: Path) -> Study:
    """A study with its runs. Raises: UserError naming the key that is wrong."""
    values = read_yaml(path)
    pretrainings, arms = taken_section(values, "pretrainings"), taken_section(values, "arms")
    study = Study(path, output, build(StudyConfig, values).study, pretrainings, arms)
    study.check_names()
    study.plan_runs()
    return study
