"""The short table at the end, from the rows."""

from collections.abc import Iterator

from bench.gpu.run import Run

__all__ = ["table", "targets"]


def table(run: Run) -> Iterator[str]:
    """Lines to print: ceilings, operations, networks, analyses, targets, and what failed."""
    for row in run.found("ceilings"):
        if "ceiling" in row:
            unit, scale = ("GB/s", 1e-9) if row["ceiling"] == "copy" else ("TFLOP/s", 1e-12)
            yield f"{row['ceiling']:>10} {scale * row['per_second']:10.1f} {unit}"
    yield from _operations(run)
    yield from _networks(run)
    yield from _analyses(run)
    yield from _whole(run)
    yield from _targets(run)
    failed = [row for row in run.rows if not row.get("ok", True)]
    skipped = sum("skipped" in row for row in run.rows)
    yield f"\n{len(run.rows)} rows, {skipped} skipped, {len(failed)} failed"
    for row in failed[:20]:
        yield (
            "  " + ", ".join(f"{k} {v}" for k, v in row.items() if k != "ok" and isinstance(v, str | int | list))[:200]
        )


def _operations(run: Run) -> Iterator[str]:
    columns = f"{'error/torch':>12}{'ms':>9}{'GB/s':>9}{'of roof':>9}{'x torch':>9}"
    yield f"\n{'operation':<26}{'native':<8}{'dtype':<10}{columns}"
    for row in run.found("operations"):
        if "ms" not in row or row["implementation"] == "torch":
            continue
        parity = run.found("parity", operation=row["operation"], native=row["implementation"], dtype=row["dtype"])
        error = max((max(p.get("error_over_torch", {}).values(), default=0.0) for p in parity), default=float("nan"))
        yield (
            f"{row['operation']:<26}{row['implementation']:<8}{row['dtype']:<10}{error:12.2f}"
            f"{row['ms']['p50']:9.3f}{row['gb_per_s']:9.0f}{row['of_roof']:9.2f}{row['over_torch'] or 0:9.1f}"
        )


def _networks(run: Run) -> Iterator[str]:
    yield f"\n{'network':<24}{'package':<10}{'members':>8}{'ms':>10}{'TFLOP/s':>9}{'of rate':>9}"
    for row in run.found("networks", captured=True):
        yield (
            f"{row['part']:<24}{row['package']:<10}{row['members']:8}{row['ms']['p50']:10.3f}"
            f"{row['tflop_per_s']:9.1f}{row['of_matrix_rate']:9.2f}"
        )


def _analyses(run: Run) -> Iterator[str]:
    yield f"\n{'analysis':<10}{'backend':<11}{'precision':<10}{'members':>8}{'seconds':>10}{'members/s':>11}{'GiB':>8}"
    for row in run.found("latency"):
        if "members_per_second" in row:
            yield (
                f"{row['package']:<10}{row['backend']:<11}{row['precision']:<10}{row['members']:8}{row['seconds']:10.3f}"
                f"{row['members_per_second']:11.1f}{row['gib']:8.2f}  {row['chunk']} at a time, {row['execution']}"
            )
    for row in run.found("breakdown"):
        if "shares" in row:
            shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in row["shares"].items())
            yield f"{row['package']}, {row['members']} members: {shares}"


def _whole(run: Run) -> Iterator[str]:
    """Graphs and memory: the worst of each package."""
    for package in dict.fromkeys(row["package"] for row in run.found("graphs") if "package" in row):
        captured = list(run.found("graphs", package=package, captured=True))
        if captured:
            same = sum(row["ok"] for row in captured)
            most = max(row["idle"] or 0.0 for row in captured)
            yield f"{package}: {same} of {len(captured)} graphs equal the call; idle {100 * most:.1f} % at most"
    for row in run.found("memory"):
        if "ratio" in row:
            yield (
                f"{row['package']}, {row['precision']}, {row['members']} members: memory {row['measured'] / 2**30:.3f} "
                f"GiB, {row['ratio']:.2f} of the plan's"
            )


def _targets(run: Run) -> Iterator[str]:
    yield f"\n{'target':<66}{'wanted':>10}{'found':>10}"
    for what, most, wanted, found in targets(run):
        if found is None:
            yield f"{what:<66}{'':>10}{'not measured':>14}"
        else:
            met = found <= wanted if most else found >= wanted
            yield f"{what:<66}{'<=' if most else '>=':>4}{wanted:6g}{found:10.3f}{'' if met else '  missed'}"


def targets(run: Run) -> Iterator[tuple[str, bool, float, float | None]]:
    """What is aimed at, whether that is the most or the least, its value, and what was found."""
    bound = [row for row in run.found("operations", bound="bytes") if row["implementation"] != "torch"]
    best: dict[tuple, float] = {}
    for row in bound:
        key = row["operation"], row["what"], row["dtype"]
        best[key] = max(best.get(key, 0.0), row["of_roof"])
    yield (
        "kernels bound by memory: share of a copy's bandwidth, the least",
        False,
        0.8,
        min(best.values(), default=None),
    )
    derived = [
        row
        for part in ("decoder jvp", "decoder vjp")
        for row in run.found("networks", package="papers", part=part, captured=True)
        if "of_matrix_rate" in row
    ]
    most = max((row["members"] for row in derived), default=32)
    rates = [row["of_matrix_rate"] for row in derived if row["members"] == most]
    what = f"published size, {most} members, decoder derivatives: share of the rate"
    yield what, False, 0.5, min(rates, default=None)
    idle = {row["package"]: row["idle"] for row in run.found("graphs", guidance="LO-SDA", captured=True)}
    for package in ("built-in", "papers"):
        yield f"{package}, LO-SDA as a graph: idle share", True, 0.03, idle.get(package)
    one = [
        row["seconds"]
        for row in run.found("latency", package="papers", backend="fused", members=1)
        if "members_per_second" in row
    ]
    yield "published size, LO-SDA of one member: seconds", True, 1.0, min(one, default=None)
    off = [row["off"] for row in run.found("memory") if "off" in row]
    yield "memory: most that the plan is off, beside a workspace", True, 0.1, max(off, default=None)
