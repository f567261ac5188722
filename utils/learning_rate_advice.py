"""The learning rate belongs to the batch size, and nothing scales it silently: what to say where only one changes."""

from utils.config import OVERRIDE, argument_parser, keys_given, read_yaml
from utils.knobs import convert, knobs

BATCH_SIZE, RATE = "train.batch_size", "optimizer.learning_rate"


def unscaled_rate_warning(config: object, argv: list[str]) -> str | None:
    """A warning with the linearly scaled rate, if a command line changes the batch size of --config but not the rate.

    Args:
        config: the one that the command line `argv` asks for.
    """
    config_class = type(config)
    given = keys_given(config_class, argv)
    flags, _ = argument_parser(config_class, "").parse_known_args([word for word in argv if not OVERRIDE.match(word)])
    if not flags.config or BATCH_SIZE not in given or RATE in given:
        return None
    recipe = flags.config[0]
    knob = knobs(config_class)[BATCH_SIZE]
    value, _ = read_yaml(recipe).get(BATCH_SIZE, (knob.default, "default"))
    batch_size, size_of_recipe = config.train.batch_size, convert(value, knob.hint)
    if batch_size == size_of_recipe:
        return None
    rate = config.optimizer.learning_rate
    return (
        f"warning: train.batch_size = {batch_size}: {recipe} has {size_of_recipe}, for which its learning rate "
        f"{rate:g} was set; scaled linearly that is {RATE}={rate * batch_size / size_of_recipe:.4g}"
    )
