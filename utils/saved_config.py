"""The config inside a checkpoint, before it is read: a file of others may hold anything in its place."""

from utils.errors import UserError, printable

MOST_MEMBERS = 1000  # of a value
PLAIN = (bool, int, float, str, type(None))


def refuse_odd_values(saved: object, origin: str) -> None:
    """Raise UserError unless `saved` is sections of values that a YAML file could give.

    Nothing goes deeper than a list of plain values, so that neither depth nor repetition can cost time.
    """
    if not isinstance(saved, dict):
        raise UserError(f"{origin}: its config is a {type(saved).__name__}, not sections of keys")
    for section, keys in saved.items():
        if not isinstance(section, str) or not isinstance(keys, dict):
            raise UserError(f"{origin}: {printable(section)} in its config must be a section of keys")
        for key, value in keys.items():
            name = f"{printable(section)}.{printable(key)}"
            members = value if isinstance(value, list | tuple) else [value]
            if not isinstance(key, str) or len(members) > MOST_MEMBERS:
                raise UserError(f"{origin}: {name} in its config is no setting")
            for member in members:
                if type(member) not in PLAIN:
                    raise UserError(f"{origin}: {name} in its config holds a {type(member).__name__}")
