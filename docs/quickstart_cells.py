# ruff: noqa: D100, B018, E402 -- a notebook's cells: expressions are shown, imports stand where they are needed
# %% [markdown]
# # topoopt in a notebook
#
# A small CNN on scikit-learn's digits, trained at two rates. Wrap the optimizer, train as before, and look.

# %%
import torch
from torch import nn

from topoopt import TopoOptimizer, plots
from topoopt.demo import digits
from topoopt.report import JsonLines, Live, read

(x, y), _ = digits(0)
x.shape

# %% [markdown]
# `Live()` shows the run while it trains, in one output that is drawn anew: r over the edge of stability, the progress, the
# verdict, the last readings. `JsonLines` writes the record.


# %%
def train(lr, name, steps=150):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10)
    )
    optimizer = TopoOptimizer(torch.optim.AdamW(model.parameters(), lr=lr), model, every=25, budget=None, keep="host")
    optimizer.total_steps = steps
    optimizer.add_sink(JsonLines(f"{name}/record.jsonl"))
    optimizer.add_sink(Live())
    for _ in range(steps):
        batch = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    optimizer.detach()
    return read(name)


gentle = train(3e-3, "gentle")

# %% [markdown]
# And a rate that is a hundred times larger.

# %%
bold = train(3e-1, "bold")

# %% [markdown]
# What is said of a run, and its numbers:

# %%
bold.verdict

# %%
bold.to_pandas("readings")[["step", "r", "edge", "r_over_edge", "loss", "silent"]].tail()

# %% [markdown]
# r over the steps, among the phases; then both runs in units of the edge.

# %%
plots.phases(gentle)

# %%
plots.compare({"lr 0.003": gentle, "lr 0.3": bold})

# %% [markdown]
# The neurons: which clusters of the convolution's 16 channels join at which distance, and how far each layer has moved.

# %%
layer = next(iter(gentle.measurements[-1].groups))
plots.merge_tree(gentle, layer=layer)

# %%
plots.layers(gentle, metric="distortion")

# %% [markdown]
# Everything on one page, to look at or to mail:

# %%
from topoopt.report import html

page = html.page([gentle, bold])
f"{len(page):,} characters of HTML that need nothing else"
