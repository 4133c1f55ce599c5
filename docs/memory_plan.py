"""Draws memory_plan.svg: where the values of the published network's first MSRB lie, from its plan.

python docs/memory_plan.py
"""

import math
from pathlib import Path
from xml.etree import ElementTree

import torch

import mirnet_fast
from mirnet_fast import engine
from mirnet_fast.engine.graph import MAP, SUMS
from mirnet_fast.engine.memory import Layout

PICTURE = Path(__file__).with_suffix(".svg")
SIZE = 256
STEP, MIB, LEFT, TOP, BELOW = 19, 4, 44, 40, 115  # pixels: a task, a MiB, the margins
COLOURS = {
    "conv3x3": "#9ecae1",
    "conv1x1": "#c6dbef",
    "residual_down_tail": "#a1d99b",
    "residual_up_tail": "#fdd0a2",
    "skff_select": "#bcbddc",
    "dau_attention": "#fc9272",
}


def nbytes(value):
    """Bytes of a Value."""
    return math.prod(value.shape) * (8 if value.kind == SUMS else 4)


def drawn():
    """The picture as SVG."""
    model = mirnet_fast.MIRNet().eval()
    image = torch.zeros(1, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        plan = engine.plan_of(model, image)
    tasks, layout = plan.tasks, Layout(plan.tasks, nbytes)
    # The first convolution that adds something is the MSRB's last step.
    count = 1 + next(i for i, task in enumerate(tasks) if task.reads.get("residual"))
    width, bottom = LEFT + STEP * count + 10, TOP + MIB * layout.nbytes / 2**20
    svg = ElementTree.Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {bottom + BELOW:.0f}",
        style="font-family: sans-serif; font-size: 10px",
    )
    add(svg, "rect", width="100%", height="100%", fill="white")
    title = f"{count} of the {len(tasks)} tasks of MIRNet at {SIZE} x {SIZE}, and the block they run in"
    write(svg, LEFT, 16, f"{title}: {layout.nbytes / 2**20:.0f} MiB", style="font-size: 13px")
    block = {"x": LEFT, "y": TOP, "width": STEP * count, "height": f"{bottom - TOP:g}"}
    add(svg, "rect", **block, fill="none", stroke="#888")
    for mib in range(0, int(layout.nbytes / 2**20) + 1, 16):
        y = bottom - MIB * mib
        add(svg, "line", x1=LEFT - 4, x2=LEFT + STEP * count, y1=f"{y:g}", y2=f"{y:g}", stroke="#ddd")
        write(svg, LEFT - 7, y + 3, mib, **{"text-anchor": "end"})
    write(svg, 6, TOP - 6, "MiB")
    made = {value: i for i, task in enumerate(tasks) for value in outputs(task)}
    last = {window.value: i for i, task in enumerate(tasks) for window in task.windows()}
    for value, offset in sorted(layout.offsets.items(), key=lambda item: made[item[0]]):
        if value.kind == MAP and made[value] < count:
            # What is overwritten ends where its successor begins.
            over = [made[o] for o in layout.owners if layout.owners[o] is layout.owners[value]]
            end = min([last[value] + 1, count, *(i for i in over if i > made[value])])
            show(svg, value, tasks[made[value]].kind, made[value], end, bottom - MIB * offset / 2**20)
    for i, task in enumerate(tasks[:count]):
        x, y = LEFT + STEP * i, bottom + 3
        add(svg, "rect", x=x + 1, y=f"{y:g}", width=STEP - 2, height=5, fill=COLOURS[task.kind])
        turned = {"transform": f"rotate(-90 {x + 13} {y + 9:g})", "text-anchor": "end"}
        write(svg, x + 13, y + 9, task.kind, **turned)
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


def outputs(task):
    """The Values that a task writes."""
    return [window.value for window in task.writes.values() if window is not None]


def show(svg, value, kind, begin, end, y):
    """A map as a rectangle: its lifetime in tasks by its bytes, y being its lower edge."""
    height, width = MIB * nbytes(value) / 2**20, STEP * (end - begin)
    x, y = LEFT + STEP * begin, y - height
    place = {"x": f"{x:g}", "y": f"{y:g}", "width": f"{width:g}", "height": f"{height:g}"}
    add(svg, "rect", **place, fill=COLOURS[kind], stroke="white")
    if width > 2 * STEP:
        write(svg, x + 3, y + height / 2 + 3, f"{value.shape[1]} x {value.shape[2]}²")


def add(svg, tag, **attributes):
    """A new element."""
    return ElementTree.SubElement(svg, tag, {name: str(value) for name, value in attributes.items()})


def write(svg, x, y, text, **attributes):
    """Text that begins there."""
    add(svg, "text", x=f"{x:g}", y=f"{y:g}", **attributes).text = str(text)


if __name__ == "__main__":
    PICTURE.write_text(drawn())
    print(f"{PICTURE} is drawn")
