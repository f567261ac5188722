"""One HTML file on some runs, to send to a colleague: nothing else is needed to read it, neither network nor script.

python scripts/figures/report.py runs/sample_pretrain runs/sample_finetune_mfm runs/sample_finetune_scratch --output report.html
python scripts/figures/report.py runs/* --images sample/val --output report.html     # with reconstructions of these images
"""

import argparse
import itertools
import re
import statistics
import sys
from collections import defaultdict
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.config_diff import differing
from scripts.figures.plot import RunFolder, figures_of, named, read_run
from scripts.figures.reconstruct import grid_of_images, labelled_crops, pick_images, pretrained
from scripts.study.summarize import read_arms, summarize, to_markdown
from utils.config import show
from utils.distributed import run_entry
from utils.errors import UserError
from utils.figures import data_uri

CSS = """
:root { color-scheme: light dark; overflow-wrap: break-word; }
body { max-width: 60rem; margin: 0 auto; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid gray; }
figure { margin: 1.5rem 0; break-inside: avoid; }
img { max-width: 100%; background: white; }
figcaption, table, pre { font-size: 0.9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { max-width: 15rem; border: 1px solid gray; padding: 0.25rem 0.5rem; text-align: left; vertical-align: top; }
pre { white-space: pre-wrap; }
nav a { margin-right: 1rem; display: inline-block; }
@media print {
  body { max-width: none; } nav { display: none; } .wide { overflow: visible; overflow-wrap: anywhere; }
  details::details-content { content-visibility: visible; height: auto; }
}
"""


def inline(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(text))


def html_table(header: list[str], rows: list[list[str]]) -> str:
    """Cells are text, and escaped; `**` around words makes them bold."""
    head = "".join(f"<th>{inline(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{inline(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def of_markdown(text: str) -> str:
    """Tables, lists and paragraphs of Markdown as scripts/study/summarize.py writes them; all else is escaped."""
    parts = []
    for kind, group in itertools.groupby(text.splitlines(), key=lambda line: line[:1] if line[:1] in "|-" else "text"):
        lines = list(group)
        if kind == "|":
            rows = [re.split(r"(?<!\\)\|", line.strip("|")) for line in lines]
            header, _, *rows = [[cell.strip().replace("\\|", "|") for cell in row] for row in rows]
            parts.append(html_table(header, rows))
        elif kind == "-":
            parts.append("<ul>" + "".join(f"<li>{inline(line[1:].strip())}</li>" for line in lines) + "</ul>")
        else:
            parts += [f"<p>{inline(line)}</p>" for line in lines if line.strip()]
    return "".join(parts)


def picture(figure, told: str) -> str:
    told = escape(told)
    return f'<figure><img src="{data_uri(figure)}" alt="{told}"><figcaption>{told}</figcaption></figure>'


def overview(runs: dict[str, RunFolder]) -> str:
    """What was run, with what, at what cost: a column a run."""
    columns = []
    for run in runs.values():
        text, last = (run.folder / "config.yaml").read_text(encoding="utf-8"), run.lines[-1] if run.lines else {}
        where = defaultdict(lambda: "?", re.findall(r"^# (\w+): (.*)$", text, re.MULTILINE))
        speeds = [line["images_per_second"] for line in run.lines]
        columns.append({
            "kind": run.kind, "model": str(run.config["model.name"]),
            "steps": f"{last.get('step', 0)}" + ("" if run.result else " (not finished)"),
            "last attempt took": f"{run.result['seconds'] / 60:.1f} min" if run.result else "not known",
            "images/s (median)": f"{statistics.median(speeds):.4g}" if speeds else "not known",
            "peak memory of rank 0 [GB]": f"{last['peak_memory_gb']:.2f}" if "peak_memory_gb" in last else "not known",
            "ranks × device": f"{where['world_size']} × {where['device']}", "commit": where["commit"][:48],
            "versions": ", ".join(f"{library} {where[library]}" for library in ("torch", "torchvision", "python")),
        })  # fmt: skip
    return html_table(["", *runs], [[fact, *(column[fact] for column in columns)] for fact in columns[0]])


def results(runs: dict[str, RunFolder]) -> str:
    """The table of scripts/study/summarize.py, with intervals where there are several seeds."""
    folders = [run.folder for run in runs.values() if "results" in run.result]
    if not folders:
        return "<p>No finetuning among these runs has finished.</p>"
    try:
        return of_markdown(to_markdown(summarize(read_arms(folders), [], [], None), None))
    except UserError as error:
        return f"<p>No table: {escape(str(error))}</p>"


def differences(runs: dict[str, RunFolder]) -> str:
    """The config of each run against the first of its kind."""
    parts = []
    for kind in ("pretraining", "finetuning"):
        first, *others = [name for name, run in runs.items() if run.kind == kind] or [""]
        for name in others:
            pairs = differing(runs[first].config, runs[name].config)
            rows = [[key, show(before), show(after)] for key, (before, after) in pairs.items()]
            parts.append(html_table(["key", first, name], rows) if rows else f"<p>{escape(name)}: none.</p>")
    return "".join(parts) or "<p>No two runs of one kind.</p>"


def reconstructions(runs: dict[str, RunFolder], images: list[str]) -> str:
    parts = []
    for name, run in runs.items():
        checkpoint = run.folder / "checkpoints/last.pt"
        if run.kind == "pretraining" and checkpoint.exists():
            config, model = pretrained(str(checkpoint))
            crops = labelled_crops(pick_images(images, 4), config.data.train_crop_size, config.data.interpolation)
            told = f"{name}: original, filtered, prediction and combined for {', '.join(crops)}, with the PSNR in dB."
            parts.append(picture(grid_of_images(config, model, crops, config.filter.radius), told))
    return "".join(parts)


def report(runs: list[RunFolder], images: list[str], width: int) -> str:
    """The page."""
    by_name = named(runs)
    curves = "".join(picture(figure, told) for figure, told in figures_of(runs, width).values())
    sections = [
        ("What was run", overview(by_name)),
        ("Results", results(by_name)),
        ("Figures", curves or "<p>No run has anything to draw yet.</p>"),
        ("Reconstructions", reconstructions(by_name, images) if images else "<p>None: --images was not given.</p>"),
        ("Where the configs differ", differences(by_name)),
        ("How it was run", "".join(
            f"<details><summary>{escape(name)}</summary>"
            f"<pre>{escape((run.folder / 'config.yaml').read_text(encoding='utf-8'))}</pre></details>"
            for name, run in by_name.items()
        )),
    ]  # fmt: skip
    links = "".join(f'<a href="#s{number}">{escape(title)}</a>' for number, (title, _) in enumerate(sections))
    body = "".join(f'<h2 id="s{n}">{escape(title)}</h2>{content}' for n, (title, content) in enumerate(sections))
    title = "Report: " + ", ".join(by_name)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><link rel="icon" href="data:,">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>"
        f"<body><h1>{escape(title)}</h1><nav>{links}</nav>{body}</body></html>\n"
    )


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description="One self-contained HTML file on some runs.")
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--output", type=Path, default=Path("report.html"))
    parser.add_argument("--images", nargs="+", default=[], help="images or folders of them, to show reconstructed")
    parser.add_argument("--smooth", type=int, default=5, help="points of the log that a curve's value is the mean of")
    arguments = parser.parse_args(argv)
    page = report([read_run(folder) for folder in arguments.runs], arguments.images, max(1, arguments.smooth))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(page, encoding="utf-8", errors="replace")
    print(f"wrote {arguments.output}: {len(page) / 1e6:.1f} MB")


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
