"""Drawing a machine as lstopo does: boxes for nodes, with their memory and CPUs, in the terminal and as SVG; distances below."""

import html

from numaemu.spec.units import format_size, list_text

WIDTH = 80
CPUS_IN_A_ROW = 8
LISTED = 64  # CPUs of a node that are drawn one by one
# SVG: pixels
UNIT, GAP, BOX_W, CPU_W, CPU_H, FONT = 16, 8, 300, 32, 22, 12
MEMORY_FILL, NODE_FILL, CPU_FILL, MACHINE_FILL = "#ef9a9a", "#f5f5f5", "#ffffff", "#ffffff"


def node_lines(node):
    """What stands in a node's box."""
    memory = format_size(node.memory_bytes) if node.memory_bytes else "no memory"
    lines = [f"NUMANode P#{node.id} {memory}"]
    if not node.cpus:
        return [*lines, "no CPUs"]
    if len(node.cpus) > LISTED:
        return [*lines, f"{len(node.cpus)} CPUs: {list_text(node.cpus)}"]
    wide = max(len(str(cpu)) for cpu in node.cpus)
    boxes = [f"[{cpu:>{wide}}]" for cpu in node.cpus]
    return [*lines, *(" ".join(boxes[i : i + CPUS_IN_A_ROW]) for i in range(0, len(boxes), CPUS_IN_A_ROW))]


def box(lines, width, height):
    """A frame around lines."""
    rows = [line[:width].ljust(width) for line in lines] + [" " * width] * (height - len(lines))
    return ["┌─" + "─" * width + "─┐", *(f"│ {row} │" for row in rows), "└─" + "─" * width + "─┘"]


def beside(boxes):
    return [" ".join(parts) for parts in zip(*boxes)]


def text(topology, width=WIDTH):
    """The drawing, as lines of text."""
    contents = [node_lines(node) for node in topology.nodes]
    wide = min(max(len(line) for lines in contents for line in lines), width - 8)
    columns = max((width - 4 + 1) // (wide + 5), 1)
    inner = []
    for i in range(0, len(contents), columns):
        row = contents[i : i + columns]
        inner += beside([box(lines, wide, max(map(len, row))) for lines in row])
    title = f"Machine {topology.name} ({format_size(topology.memory_bytes)} total, {topology.nr_cpus} CPUs)"
    frame = box([title, *inner], max(map(len, [title, *inner])), 0)
    return "\n".join([*frame, *matrices(topology)]) + "\n"


def matrices(topology):
    """Distances and latencies, side by side if there is room."""
    found = []
    for title, matrix in (("distances", topology.distance), ("ns of a load", topology.latency_ns)):
        wide = max(len(str(value)) for row in matrix for value in row) + 1
        wide = max(wide, len(str(len(matrix) - 1)) + 1)
        head = f"{'node':>6}" + "".join(f"{i:>{wide}}" for i in range(len(matrix)))
        found.append([title, head, *(f"{i:>6}" + "".join(f"{v:>{wide}}" for v in row) for i, row in enumerate(matrix))])
    left, right = found
    room = max(map(len, left)) + 4
    if room + max(map(len, right)) <= WIDTH:
        return [f"{a:<{room}}{b}".rstrip() for a, b in zip(left, right)]
    return left + right


# -- SVG -----------------------------------------------------------------------------------------------------


def rect(x, y, w, h, fill):
    return f'<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="{fill}" stroke="#333"/>'


def label(x, y, words, anchor="start"):
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{html.escape(words)}</text>'


def svg_node(node, x, y):
    """(elements, height) of a node's box."""
    rows = [node.cpus[i : i + CPUS_IN_A_ROW] for i in range(0, len(node.cpus), CPUS_IN_A_ROW)]
    if len(node.cpus) > LISTED:
        rows = []
    top = 2 * UNIT + 2 * GAP
    height = top + max(len(rows), 1) * (CPU_H + GAP) + GAP
    memory = format_size(node.memory_bytes) if node.memory_bytes else "no memory"
    parts = [
        rect(x, y, BOX_W, height, NODE_FILL),
        rect(x + GAP, y + GAP, BOX_W - 2 * GAP, UNIT + GAP, MEMORY_FILL if node.memory_bytes else NODE_FILL),
        label(x + 2 * GAP, y + GAP + UNIT, f"NUMANode P#{node.id} {memory}"),
    ]
    if not rows:
        words = f"{len(node.cpus)} CPUs: {list_text(node.cpus)}" if node.cpus else "no CPUs"
        parts.append(label(x + GAP, y + top + UNIT, words))
    for r, row in enumerate(rows):
        for c, cpu in enumerate(row):
            left, down = x + GAP + c * (CPU_W + 4), y + top + r * (CPU_H + GAP)
            parts += [
                rect(left, down, CPU_W, CPU_H, CPU_FILL),
                label(left + CPU_W // 2, down + UNIT, str(cpu), "middle"),
            ]
    return parts, height


def svg(topology):
    """The drawing, as the text of an SVG file."""
    columns, parts, y = min(2 if topology.nr_nodes < 9 else 4, topology.nr_nodes), [], 3 * UNIT
    for i in range(0, topology.nr_nodes, columns):
        tallest = 0
        for c, node in enumerate(topology.nodes[i : i + columns]):
            drawn, height = svg_node(node, GAP * 2 + c * (BOX_W + GAP), y)
            parts += drawn
            tallest = max(tallest, height)
        y += tallest + GAP
    width = max(columns * (BOX_W + GAP) + 3 * GAP, 420)
    title = f"Machine {topology.name} ({format_size(topology.memory_bytes)} total, {topology.nr_cpus} CPUs)"
    frame = [rect(GAP, GAP, width - 2 * GAP, y, MACHINE_FILL), label(2 * GAP, GAP + UNIT, title)]
    y += 2 * UNIT
    tables = []
    for line in matrices(topology):
        tables.append(f'<text x="{2 * GAP}" y="{y}" class="mono" xml:space="preserve">{html.escape(line)}</text>')
        y += UNIT
    widest = max(width, 4 * GAP + max(map(len, matrices(topology))) * 7)
    style = f"text{{font:{FONT}px sans-serif}}.mono{{font:{FONT - 1}px monospace}}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{widest}" height="{y}" viewBox="0 0 {widest} {y}">'
    return "\n".join([head, f"<style>{style}</style>", *frame, *parts, *tables, "</svg>"]) + "\n"
