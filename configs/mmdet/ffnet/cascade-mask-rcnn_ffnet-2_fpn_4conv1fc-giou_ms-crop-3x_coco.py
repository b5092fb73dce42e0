# box AP 51.8, mask AP 44.9 (arXiv:2406.02021). Weights: Apache-2.0.
# Settings: github.com/ysj9909/FFNet, with a lower rate in earlier layers, a layer norm for every map and batch norms
# over all GPUs. Differs: layer scales, vectors here, are not decayed.
_base_ = ["../_base_/models/cascade-mask-rcnn.py", "../_base_/schedules/3x_swin.py"]
model = dict(backbone=dict(model="ffnet_2", map_norm="layernorm", drop_path_rate=0.35))
optim_wrapper = dict(constructor="mixzoo.LayerDecay", paramwise_cfg=dict(_delete_=True, decay_rate=0.8, num_layers=12))
sync_bn = "torch"
