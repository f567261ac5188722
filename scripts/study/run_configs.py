"""What the runs of a comparison must share: the configs of finetunings and of their pretrainings."""

from dataclasses import dataclass
from pathlib import Path

from configs.schema import FinetuneConfig, PretrainConfig
from utils.config import keys_affecting, yaml_text
from utils.run.reading import FlatConfig, resolved_config

# What a comparison need not hold fixed: places and logging; the seed, since an arm is a mean over seeds; and sizes and
# shares of the labels, since each of them has a table of its own.
IGNORED = (
    keys_affecting(PretrainConfig, "nothing")
    | keys_affecting(FinetuneConfig, "nothing")
    | {"run.seed", "data.val_resize_size", "run.select_val_resize_size", "data.label_fraction"}
)


@dataclass(frozen=True)
class RunConfigs:
    """The config of a finetuning (empty for a probe), and of its pretraining (empty if not of this project)."""

    finetuning: FlatConfig
    pretraining: FlatConfig

    @classmethod
    def read(cls, finetuning: Path, pretraining: Path) -> "RunConfigs":
        """From a folder or YAML file, and from a YAML file that may be missing."""
        if pretraining.is_file():
            return cls(resolved_config(str(finetuning)), resolved_config(str(pretraining)))
        return cls(resolved_config(str(finetuning)), {})

    @classmethod
    def of_pretraining(cls, path: Path) -> "RunConfigs":
        """From a folder or YAML file."""
        return cls({}, resolved_config(str(path)))

    def facts(self) -> dict[str, str]:
        """What two runs must share to be compared."""
        facts = {key: yaml_text(value) for key, value in self.finetuning.items() if key not in IGNORED}
        if self.pretraining:
            facts["pretraining"] = "a checkpoint of this project"
        else:
            facts["pretraining"] = yaml_text(self.finetuning["run.weights"] or "none")
        for key, value in self.pretraining.items():
            if key not in IGNORED:
                facts[f"pretraining.{key}"] = yaml_text(value)
        return facts
