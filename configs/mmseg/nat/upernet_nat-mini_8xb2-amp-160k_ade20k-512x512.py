# mIoU 45.1, 46.4 at several scales, 50 M parameters (arXiv:2204.07143). Weights: MIT.
# Settings: github.com/SHI-Labs/Neighborhood-Attention-Transformer, a layer norm for every map.
_base_ = ["../_base_/models/upernet.py", "../_base_/datasets/ade20k.py", "../_base_/schedules/160k.py"]
model = dict(backbone=dict(model="nat_mini", map_norm="layernorm_1e-5", drop_path_rate=0.2))
optim_wrapper = dict(type="AmpOptimWrapper")
