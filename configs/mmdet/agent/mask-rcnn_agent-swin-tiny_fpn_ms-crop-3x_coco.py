# box AP 47.3, mask AP 42.7, 48 M parameters (arXiv:2312.08874). Weights: no licence stated.
# Settings: github.com/LeapLabTHU/Agent-Attention: larger grids of agents, whose biases are not decayed, and a layer
# norm for every map. The authors do not say how many GPUs had 2 images each.
_base_ = ["../_base_/models/mask-rcnn.py", "../_base_/schedules/3x_swin.py", "../_base_/backbones/agent-swin-tiny.py"]
model = dict(backbone=dict(model="agent_swin_tiny", drop_path_rate=0.1, **_base_.agent_swin_tiny))
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={".bias_in.": dict(decay_mult=0.0), ".bias_out.": dict(decay_mult=0.0)})
)
