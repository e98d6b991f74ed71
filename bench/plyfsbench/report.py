# SPDX-License-Identifier: MIT
"""What came out: the numbers of each cell, as JSON, as tables for a terminal and for a page."""

import math
import statistics

NOISY = 0.20  # a spread above this part of the median gets a "~"


def summary(values):
    """median, and spread: half the range as a part of the median."""
    middle = statistics.median(values)
    spread = (max(values) - min(values)) / 2 / middle if middle else 0.0
    return middle, spread


def cells(results, jobs):
    """{metric: {"unit", "title", "systems": {name: cell}}} in the order of the workloads."""
    out = {}
    for job in jobs:
        for metric, title in job.workload.metrics.items():
            name = job.prefix + metric
            row = {"unit": job.workload.unit, "title": title, "workload": job.workload.title,
                   "group": job.prefix.rstrip("/"), "systems": {}}
            for system in job.systems:
                row["systems"][system.name] = cell(
                    results.samples.get(name, {}).get(system.name, []),
                    results.failures.get(name, {}).get(system.name, []),
                )
            add_ratios(row["systems"])
            add_incumbent(row, [s.name for s in job.systems if s.is_incumbent])
            out[name] = row
    return out


def cell(samples, failures):
    out = {"samples": samples, "failures": failures}
    if samples:
        out["median"], out["spread"] = summary(samples)
        out["least"] = min(samples)
    return out


def usable(cell_of):
    """A cell with a failure has no number, however often it did not fail."""
    return bool(cell_of) and not cell_of["failures"] and bool(cell_of.get("median"))


def add_ratios(systems):
    reference = systems.get("overlay")
    if not usable(reference):
        return
    for found in systems.values():
        if usable(found):
            found["ratio"] = found["median"] / reference["median"]
            found["ratio_of_least"] = found["least"] / reference["least"]


def add_incumbent(row, incumbents):
    """What plyfs takes of the time of the fastest fuse-overlayfs that is there."""
    systems = row["systems"]
    times = [systems[s]["median"] for s in incumbents if usable(systems[s])]
    if times and usable(systems.get("plyfs")):
        row["to_incumbent"] = systems["plyfs"]["median"] / min(times)


def geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def means(table):
    """{system: (geometric mean of its ratios, of how many)}, of what is measured in seconds."""
    found = {}
    for row in table.values():
        if row["unit"] == "s":
            for system, c in row["systems"].items():
                if "ratio" in c:
                    found.setdefault(system, []).append(c["ratio"])
    return {system: (geometric_mean(r), len(r)) for system, r in found.items()}


# --- text ------------------------------------------------------------------------------------------


def amount(value, unit):
    if unit == "s":
        for factor, name in ((1, "s"), (1e3, "ms")):
            if value * factor >= 1:
                return f"{value * factor:.3g} {name}"
        return f"{value * 1e6:.3g} us"
    return f"{value:.3g} {unit}"


def text_of(c, unit, absolute, by="median"):
    """by: "median", or "least", which a busy machine disturbs less."""
    if c["failures"]:
        return "FAILED"
    if "median" not in c:
        return "-"
    noise = "~" if c["spread"] > NOISY else ""
    ratio = "ratio" if by == "median" else "ratio_of_least"
    if absolute or ratio not in c:
        shown = amount(c[by], unit)
    else:
        shown = f"{c[ratio]:.2f}x"
    return f"{noise}{shown} ±{c['spread'] * 100:.0f}%"


def grouped(table):
    groups = {}
    for name, row in table.items():
        groups.setdefault(row["group"], {})[name] = row
    return groups


def rows_of(group, systems, by="median"):
    """Lists of texts: the name of the metric, then a cell a system."""
    for name, row in group.items():
        texts = [text_of(row["systems"][s], row["unit"], s == "overlay", by) for s in systems]
        if all(text == "-" for text in texts):
            continue  # not for these systems
        to_incumbent = f"{row['to_incumbent']:.2f}x" if "to_incumbent" in row else "-"
        yield [name.rpartition("/")[2], *texts, to_incumbent]


INCUMBENT = "plyfs/incumbent"


def failures_of(group):
    """[(metric, system, the first text, how many)]"""
    out = []
    for name, row in group.items():
        for system, c in row["systems"].items():
            if c["failures"]:
                out.append((name, system, c["failures"][0], len(c["failures"])))
    return out


def systems_of(group):
    return list(next(iter(group.values()))["systems"])


def title_of(group, scale):
    """The workload, and by how much its numbers are fewer."""
    title = next(iter(group.values()))["workload"]
    return title if scale == 1 else f"{title} (numbers x {scale:g})"


def for_terminal(table, scale, by="median"):
    """Each group as columns: the time of overlay, and what the others take of it."""
    out = []
    for name, group in grouped(table).items():
        systems = systems_of(group)
        rows = [["", *systems, INCUMBENT], *rows_of(group, systems, by)]
        widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
        out.append(f"\n{name}: {title_of(group, scale)}")
        for row in rows:
            cells_shown = [row[0].ljust(widths[0])]
            cells_shown += [text.rjust(w) for text, w in zip(row[1:], widths[1:])]
            out.append("  " + "  ".join(cells_shown).rstrip())
        for metric, system, text, times in failures_of(group):
            out.append(f"  FAILED {metric} on {system} ({times}x): {text}")
    out += ["", f"cells: by the {by} of the samples", "geometric mean of the ratios to overlay (of how many):"]
    out += [f"  {s}: {mean:.2f}x ({n})" for s, (mean, n) in means(table).items()]
    for title, part, whole in DERIVED:
        found = derived(table, part, whole)
        if found:
            out.append(title)
            out += [f"  {s}: {x:.2f}x" for s, x in found.items()]
    return "\n".join(out)


# what is told of each system by itself: one of its medians divided by another
DERIVED = [
    ("throughput of 4 client processes against 1:", "clients/life-1p", "clients/life-4p"),
    ("chmod -R of lower files, metacopy=on against off:", "metacopy/chmod-R", "copyup/chmod-R"),
]


def derived(table, part, whole):
    if part not in table or whole not in table:
        return {}
    part, whole = table[part]["systems"], table[whole]["systems"]
    return {
        s: part[s]["median"] / whole[s]["median"]
        for s in part
        if usable(part[s]) and usable(whole.get(s))
    }


def for_page(document):
    """The same in Markdown."""
    machine, table = document["machine"], document["metrics"]
    out = [
        f"{machine['distribution']}, kernel {machine['kernel']}, {machine['cpus']} CPUs, "
        f"{document['filesystem']}; {document['rounds']} rounds, seed {document['seed']}, "
        f"scale {document['scale']:g}. overlay: the median; the others: their median as a multiple of "
        "it; ±: half the range; ~: more than 20 %; plyfs/incumbent: of the fastest fuse-overlayfs.",
        "",
    ]
    for name, group in grouped(table).items():
        systems = systems_of(group)
        out.append(f"**{name}**: {title_of(group, document['scale'])}\n")
        out.append(f"| | {' | '.join(systems)} | {INCUMBENT} |")
        out.append("|---" * (len(systems) + 2) + "|")
        out += [f"| {' | '.join(row)} |" for row in rows_of(group, systems)]
        out.append("")
        for metric, system, text, times in failures_of(group):
            out.append(f"- {metric} on {system} failed {times} times: {text}")
        out.append("")
    return "\n".join(out).rstrip() + "\n"
