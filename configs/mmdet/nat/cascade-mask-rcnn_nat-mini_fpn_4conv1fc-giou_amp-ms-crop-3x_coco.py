# box AP 50.3, mask AP 43.6, 77 M parameters (arXiv:2204.07143). Weights: MIT.
# Settings: github.com/SHI-Labs/Neighborhood-Attention-Transformer, a layer norm for every map.
_base_ = ["../_base_/models/cascade-mask-rcnn.py", "../_base_/schedules/3x_swin.py"]
model = dict(backbone=dict(model="nat_mini", map_norm="layernorm_1e-5", drop_path_rate=0.2))
optim_wrapper = dict(type="AmpOptimWrapper")
