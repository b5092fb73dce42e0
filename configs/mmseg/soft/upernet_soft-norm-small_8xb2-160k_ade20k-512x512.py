# mIoU 46.2, 54 M parameters (arXiv:2207.03341). Weights: MIT.
# The authors publish figures and no settings: these are Swin's (arXiv:2103.14030), stochastic depth that of the
# classifiers. The last stage runs with its class token.
_base_ = ["../_base_/models/upernet.py", "../_base_/datasets/ade20k.py", "../_base_/schedules/160k.py"]
model = dict(backbone=dict(model="soft_norm_small", drop_path_rate=0.1))
