# box AP 41.4, mask AP 38.7, 31 M parameters (arXiv:2312.08874). Weights: no licence stated.
# Settings: github.com/LeapLabTHU/Agent-Attention: larger grids of agents. The authors do not say how many GPUs had 2
# images each.
_base_ = ["../_base_/models/mask-rcnn.py", "../_base_/schedules/1x.py"]
model = dict(
    backbone=dict(
        model="agent_pvt_tiny",
        mixer_options=[dict(pooled=(12, 12)), dict(pooled=(16, 16)), dict(pooled=(28, 28)), dict(pooled=(28, 28))],
        drop_path_rate=0.1,
    )
)
