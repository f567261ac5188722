"""One HTML file on some runs, to send to a colleague: nothing else is needed to read it, neither network nor script.

python scripts/report.py runs/sample_pretrain runs/sample_finetune_mfm runs/sample_finetune_scratch --output report.html
python scripts/report.py runs/* --images sample/val --output report.html     # with reconstructions of these images
"""

import argparse
import html
import itertools
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts.config_diff import config_diff
from scripts.figures import data_uri
from scripts.plot import RunFolder, figures_of, named, read_run
from scripts.reconstruct import grid_of_images, labelled_crops, pick_images, pretrained
from scripts.summarize import read_arms, summarize, to_markdown
from utils.distributed import run_entry
from utils.errors import UserError

CSS = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --line: #ccc; --quiet: #555; --box: #f5f5f5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #16181c; --line: #444; --quiet: #aaa; --box: #22252b; }
}
* { box-sizing: border-box; }
body { max-width: 60rem; margin: 0 auto; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); overflow-wrap: break-word; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
figure { margin: 1.5rem 0; break-inside: avoid; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption, .quiet { color: var(--quiet); font-size: 0.9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { border: 1px solid var(--line); padding: 0.25rem 0.5rem; text-align: left; vertical-align: top; }
td { max-width: 15rem; }
pre { background: var(--box); padding: 0.5rem; white-space: pre-wrap; font-size: 0.85rem; }
nav a { margin-right: 1rem; display: inline-block; }
@media print {
  :root { color-scheme: light; --ink: #000; --paper: #fff; --quiet: #333; --box: #fff; }
  body { max-width: none; padding: 0; }
  nav { display: none; }
  .wide { overflow: visible; overflow-wrap: anywhere; }
  details::details-content { content-visibility: visible; height: auto; }
}
"""
escape = html.escape


def inline(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(text))


def html_table(header: list[str], rows: list[list[str]]) -> str:
    """Cells are text, and escaped; `**` around words makes them bold."""
    head = "".join(f"<th>{inline(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{inline(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def of_markdown(text: str) -> str:
    """Tables, lists and paragraphs of Markdown as scripts/summarize.py writes them; all else is escaped."""
    parts = []
    for kind, group in itertools.groupby(text.splitlines(), key=lambda line: line[:1] if line[:1] in "|-" else "text"):
        lines = list(group)
        if kind == "|":
            cells = [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in lines]
            cells = [[cell.strip().replace("\\|", "|") for cell in row] for row in cells]
            parts.append(html_table(cells[0], cells[2:]))
        elif kind == "-":
            parts.append("<ul>" + "".join(f"<li>{inline(line[1:].strip())}</li>" for line in lines) + "</ul>")
        else:
            parts += [f"<p>{inline(line)}</p>" for line in lines if line.strip()]
    return "".join(parts)


def picture(figure, told: str) -> str:
    return (
        f'<figure><img src="{data_uri(figure)}" alt="{escape(told)}"><figcaption>{escape(told)}</figcaption></figure>'
    )


def overview(runs: dict[str, RunFolder]) -> str:
    """What was run, with what, at what cost: a column a run."""
    rows = []
    for name, run in runs.items():
        header = re.findall(r"^# (\w+): (.*)$", (run.folder / "config.yaml").read_text(encoding="utf-8"), re.MULTILINE)
        where, last = dict(header), run.lines[-1] if run.lines else {}
        speeds = sorted(line["images_per_second"] for line in run.lines)
        rows.append([
            name, "pretraining" if run.pretraining else "finetuning", str(run.config["model.name"]),
            f"{last.get('step', 0)}" + ("" if run.result else " (not finished)"),
            f"{run.result['seconds'] / 60:.1f} min" if run.result else "not known",
            f"{speeds[len(speeds) // 2]:.4g}" if speeds else "not known",
            f"{last['peak_memory_gb']:.2f}" if "peak_memory_gb" in last else "not known",
            f"{where.get('world_size', '?')} × {where.get('device', '?')}", where.get("commit", "?")[:48],
            ", ".join(f"{library} {where.get(library, '?')}" for library in ("torch", "torchvision", "python")),
        ])  # fmt: skip
    facts = "kind, model, steps, last attempt took, images/s (median), peak memory of rank 0 [GB], "
    facts += "ranks × device, commit, versions"
    names, *cells = zip(*rows, strict=True)
    return html_table(["", *names], [[fact, *of_runs] for fact, of_runs in zip(facts.split(", "), cells, strict=True)])


def results(runs: dict[str, RunFolder]) -> str:
    """The table of scripts/summarize.py, with intervals where there are several seeds."""
    folders = [run.folder for run in runs.values() if run.rows()]
    if not folders:
        return "<p>No finetuning among these runs has finished.</p>"
    try:
        return of_markdown(to_markdown(summarize(read_arms(folders), [], [], None), None))
    except UserError as error:
        return f"<p>No table: {escape(str(error))}</p>"


def differences(runs: dict[str, RunFolder]) -> str:
    """The config of each run against the first of its kind."""
    parts = []
    for kind in (True, False):
        same = [(name, run) for name, run in runs.items() if run.pretraining == kind]
        for name, run in same[1:]:
            lines = config_diff(str(same[0][1].folder), str(run.folder))
            cells = [[key, *values.split(" -> ", 1)] for key, _, values in (line.partition(": ") for line in lines)]
            parts.append(html_table(["key", same[0][0], name], cells) if cells else f"<p>{escape(name)}: none.</p>")
    return "".join(parts) or "<p>No two runs of one kind.</p>"


def reconstructions(runs: dict[str, RunFolder], images: list[str]) -> str:
    parts = []
    for name, run in runs.items():
        checkpoint = run.folder / "checkpoints/last.pt"
        if run.pretraining and checkpoint.exists():
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


def main(argv: list[str]) -> int:
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
    return 0


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
