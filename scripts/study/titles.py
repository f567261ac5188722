"""What the columns of a summary, and the tables that hold several of them, are called."""

from scripts.study.arms import FINETUNING, KNN, KNN_CURVE, LINEAR, PIXELS, SELECTED


def group_title(column: dict) -> str:
    if column["score"] == KNN_CURVE:
        return "Top-1 % from the features of pretrainings under way"
    if column["score"] != FINETUNING:
        return "Top-1 % from the features of pretrainings"
    if column["after"] is None:
        return "Top-1 % of finetunings"
    return f"Top-1 % of finetunings after at most {column['after']} steps"


def titles_of(columns: list[dict]) -> list[str]:
    """The title of each column. That of a probe has its size only if the same score stands at several sizes."""
    words = [column_in_words(column) for column in columns]
    titles = []
    for column, title in zip(columns, words, strict=True):
        if words.count(title) > 1:
            title = f"{title} {size_in_words(column['size'])}"
        titles.append(title)
    return titles


def column_in_words(column: dict) -> str:
    """What a column holds, such as "top-1 % at 235, 10 % of labels"; of a probe without its size."""
    score, after = column["score"], column["after"]
    if score == KNN_CURVE:
        return f"20 neighbours after {after} epochs"
    if score != FINETUNING:
        return {KNN: "20 neighbours", LINEAR: "linear probe", PIXELS: "20 neighbours of raw pixels"}[score]
    words = f"top-1 % {size_in_words(column['size'])}"
    if after is not None:
        words += f" after at most {after} steps"
    if column["labels"] != 1:
        words += f", {100 * column['labels']:g} % of labels"
    return words


def size_in_words(size: str) -> str:
    if size == SELECTED:
        return "at the size selected on held-out images"
    return f"at {size}"
