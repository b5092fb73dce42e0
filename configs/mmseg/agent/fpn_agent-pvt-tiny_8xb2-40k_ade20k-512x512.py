# mIoU 40.18, 15 M parameters (arXiv:2312.08874). Weights: no licence stated.
# Settings: github.com/LeapLabTHU/Agent-Attention: larger grids of agents.
_base_ = ["../_base_/models/fpn.py", "../_base_/datasets/ade20k.py", "../_base_/schedules/40k.py"]
model = dict(
    backbone=dict(
        model="agent_pvt_tiny",
        mixer_options=[dict(pooled=(12, 12)), dict(pooled=(16, 16)), dict(pooled=(28, 28)), dict(pooled=(28, 28))],
        drop_path_rate=0.1,
    )
)
