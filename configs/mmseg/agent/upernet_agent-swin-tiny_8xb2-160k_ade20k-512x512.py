# mIoU 46.68, 61 M parameters (arXiv:2312.08874). Weights: no licence stated.
# Settings: github.com/LeapLabTHU/Agent-Attention: larger grids of agents, whose biases are not decayed, and a layer
# norm for every map.
_base_ = ["../_base_/models/upernet.py", "../_base_/datasets/ade20k.py", "../_base_/schedules/160k.py"]
model = dict(
    backbone=dict(
        model="agent_swin_tiny",
        mixer_options=[dict(pooled=(9, 9)), dict(pooled=(12, 12)), dict(pooled=(14, 14)), None],
        map_norm="layernorm_1e-5",
        drop_path_rate=0.3,
    )
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={".bias_in.": dict(decay_mult=0.0), ".bias_out.": dict(decay_mult=0.0)})
)
