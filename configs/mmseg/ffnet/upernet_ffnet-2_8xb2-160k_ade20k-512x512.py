# mIoU 47.1, 47.8 at several scales, 58 M parameters (arXiv:2406.02021). Weights: Apache-2.0.
# Settings: github.com/ysj9909/FFNet, with a lower rate in earlier layers, a layer norm for every map and batch norms
# over all GPUs. Differs: layer scales, vectors here, are not decayed.
_base_ = ["../_base_/models/upernet.py", "../_base_/datasets/ade20k_aligned.py", "../_base_/schedules/160k.py"]
model = dict(backbone=dict(model="ffnet_2", map_norm="layernorm", drop_path_rate=0.2))
optim_wrapper = dict(
    constructor="mixzoo.LayerDecay",
    optimizer=dict(lr=0.0001, weight_decay=0.05),
    paramwise_cfg=dict(_delete_=True, decay_rate=1.0, num_layers=9),
)
sync_bn = "torch"
