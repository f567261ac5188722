"""One HTML file on some runs, to send to a colleague: nothing else is needed to read it, neither network nor script.

python scripts/figures/report.py runs/sample_pretrain runs/sample_finetune_mfm runs/sample_finetune_scratch
python scripts/figures/report.py runs/* --images sample/val --output report.html   # reconstructs these images
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.figures.plot import Runs, all_figures, named
from scripts.figures.reconstruct import Pretrained, grid_of_images, labelled_crops, pick_images
from scripts.study.comparisons import summarize
from scripts.study.read_runs import read_results
from scripts.study.tables import Note, Rows, Strong, SummaryTables, TitledTables
from utils.config import yaml_text
from utils.console import say
from utils.distributed import run_entry
from utils.errors import UserError
from utils.figures import data_uri
from utils.run.reading import RunFolder, differing, read_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


@dataclass(frozen=True)
class Section:
    title: str
    html: str


def paragraph(words: str) -> str:
    return f"<p>{escape(words)}</p>"


def html_table(header: list[str], rows: list[list]) -> str:
    """A cell is text, which is escaped, or Strong."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = ""
    for row in rows:
        cells = "".join(f"<td>{html_cell(cell)}</td>" for cell in row)
        body += f"<tr>{cells}</tr>"
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def html_cell(cell: object) -> str:
    if isinstance(cell, Strong):
        return f"<strong>{escape(cell.words)}</strong>"
    return escape(str(cell))


def table_of_rows(rows: Rows) -> str:
    return html_table(list(rows[0]), [list(row.values()) for row in rows])


def list_of_notes(notes: list[Note]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{escape(note.name + note.text)}</li>" for note in notes)
    return f"<ul>{items}</ul>"


def picture(figure: Figure, description: str) -> str:
    text = escape(description)
    return f'<figure><img src="{data_uri(figure)}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def facts_of_run(run: RunFolder) -> dict[str, str]:
    """What was run, with what, at what cost. Some facts are in the comments above config.yaml."""
    comments = dict(re.findall(r"^# (\w+): (.*)$", config_text(run), re.MULTILINE))
    last_line = run.log[-1] if run.log else {}
    facts = {
        "kind": run.kind,
        "model": str(run.config["model.name"]),
        "steps": f"{last_line.get('step', 0)} (not finished)",
        "last attempt took": "not known",
        "images/s (median)": "not known",
        "peak memory of rank 0 [GB]": "not known",
        "ranks × device": f"{comments.get('world_size', '?')} × {comments.get('device', '?')}",
        "commit": comments.get("commit", "?")[:48],
        "versions": ", ".join(f"{name} {comments.get(name, '?')}" for name in ("torch", "torchvision", "python")),
    }
    if run.result:
        facts["steps"] = str(last_line.get("step", 0))
        facts["last attempt took"] = f"{run.result['seconds'] / 60:.1f} min"
    if run.log:
        facts["images/s (median)"] = f"{statistics.median(line['images_per_second'] for line in run.log):.4g}"
    if "peak_memory_gb" in last_line:
        facts["peak memory of rank 0 [GB]"] = f"{last_line['peak_memory_gb']:.2f}"
    return facts


def config_text(run: RunFolder) -> str:
    return (run.folder / "config.yaml").read_text(encoding="utf-8")


def overview(runs: Runs) -> str:
    """The facts of every run, a column a run."""
    columns = [facts_of_run(run) for run in runs.values()]
    rows = []
    for fact in columns[0]:
        rows.append([fact, *(column[fact] for column in columns)])
    return html_table(["", *runs], rows)


def results(runs: Runs) -> str:
    """The tables of scripts/study/summarize.py, with intervals where there are several seeds."""
    folders = [run.folder for run in runs.values() if "results" in run.result]
    if not folders:
        return paragraph("No finetuning among these runs has finished.")
    try:
        summary = summarize(read_results(folders), baselines=[], factors=[], difference=None)
    except UserError as error:
        return paragraph(f"No table: {error}")
    tables = SummaryTables.of(summary, difference=None)
    html = "".join(map(html_of_section, tables.overviews))
    if tables.remark:
        html += paragraph(tables.remark)
    html += "".join(map(html_of_section, tables.columns))
    return html + list_of_notes(tables.differences)


def html_of_section(section: TitledTables) -> str:
    html = f"<p><strong>{escape(section.title)}</strong></p>" if section.title else ""
    return html + "".join(map(table_of_rows, section.tables)) + list_of_notes(section.notes)


def config_differences(runs: Runs) -> str:
    """The config of each run against the first of its kind."""
    html = ""
    first_of_kind: dict[str, str] = {}
    for kind in ("pretraining", "finetuning"):
        for name, run in runs.items():
            if run.kind != kind:
                continue
            first = first_of_kind.setdefault(kind, name)
            if first == name:
                continue
            pairs = differing(runs[first].config, run.config)
            rows = [[key, yaml_text(before), yaml_text(after)] for key, (before, after) in pairs.items()]
            if rows:
                html += html_table(["key", first, name], rows)
            else:
                html += paragraph(f"{name}: none.")
    return html or paragraph("No two runs of one kind.")


def figure_pictures(runs: Runs, width: int) -> str:
    """Every figure of scripts/figures/plot.py."""
    html = "".join(picture(drawn.figure, drawn.description) for drawn in all_figures(runs, width))
    return html or paragraph("No run has anything to draw yet.")


def reconstructions(runs: Runs, images: list[str]) -> str:
    """Some images, filtered and predicted, by each pretraining."""
    if not images:
        return paragraph("None: --images was not given.")
    paths = pick_images(images, 4)
    html = ""
    for name, run in runs.items():
        if run.kind != "pretraining" or not run.last_checkpoint.exists():
            continue
        pretrained = Pretrained.read(str(run.last_checkpoint))
        data = pretrained.config.data
        crops = labelled_crops(paths, data.train_crop_size, data.interpolation, pretrained.stride)
        figure = grid_of_images(pretrained, crops, radius=None)
        labels = ", ".join(crops)
        html += picture(figure, f"{name}: originals, network inputs and predictions for {labels}, with the PSNR in dB.")
    return html


def config_files(runs: Runs) -> str:
    html = ""
    for name, run in runs.items():
        html += f"<details><summary>{escape(name)}</summary><pre>{escape(config_text(run))}</pre></details>"
    return html


def page_of(title: str, sections: list[Section]) -> str:
    links = body = ""
    for number, section in enumerate(sections):
        links += f'<a href="#s{number}">{escape(section.title)}</a>'
        body += f'<h2 id="s{number}">{escape(section.title)}</h2>{section.html}'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><link rel="icon" href="data:,">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>"
        f"<body><h1>{escape(title)}</h1><nav>{links}</nav>{body}</body></html>\n"
    )


def report(runs: Runs, images: list[str], width: int) -> str:
    """The page.

    Args:
        images: files or folders, to show reconstructed.
        width: points of the log that a curve's value is the mean of.
    """
    sections = [
        Section("What was run", overview(runs)),
        Section("Results", results(runs)),
        Section("Figures", figure_pictures(runs, width)),
        Section("Reconstructions", reconstructions(runs, images)),
        Section("Where the configs differ", config_differences(runs)),
        Section("How it was run", config_files(runs)),
    ]
    return page_of("Report: " + ", ".join(runs), sections)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="One self-contained HTML file on some runs.")
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--output", type=Path, default=Path("report.html"))
    parser.add_argument("--images", nargs="+", default=[], help="images or folders of them, to show reconstructed")
    parser.add_argument("--smooth", type=int, default=5, help="points of the log that a curve's value is the mean of")
    arguments = parser.parse_args(argv)
    runs = named([read_run(folder) for folder in arguments.runs])
    page = report(runs, arguments.images, max(1, arguments.smooth))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(page, encoding="utf-8", errors="replace")
    say(f"wrote {arguments.output}: {len(page) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
