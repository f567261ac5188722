"""What a study's YAML asks for: every run of its grid, with its command line and its config."""

import shlex
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from configs.schema import FinetuneConfig, PretrainConfig, Problems, knob
from scripts.study.planned_run import FINETUNING, PRETRAINING, PROBE, PlannedRun
from scripts.study.read_runs import LABELS_FOLDER
from utils.config import Values, build, keys_given, parse_command_line, read_yaml, to_dict
from utils.errors import UserError
from utils.scoring.sizes import settle_sizes


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
        """Seed by seed, so that a study which ends early has some runs of each arm.

        Raises: UserError naming the pretraining or arm whose command line is wrong.
        """
        for seed, scratch_seed in zip_longest(self.grid.pretrain_seeds, self.grid.scratch_seeds):
            if seed is not None:
                self.plan_pretrainings(seed)
            if scratch_seed is not None:
                self.plan_scratch(scratch_seed)

    def plan_scratch(self, seed: int) -> None:
        """The arms without pretraining, with this seed."""
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
        run = self.planned(
            key="study.probe",
            kind=PROBE,
            folder=pretraining.folder / "evaluations",  # where results about its checkpoints lie anyway
            words=f"{self.grid.probe} --probe",
            needs=pretraining,
        )
        config, _ = settle_sizes(run.config, to_dict(pretraining.config), keys_given(FinetuneConfig, run.words))
        return replace(run, config=config)

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
