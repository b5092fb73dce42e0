# No published figure at hand (arXiv:2507.00698). Weights: no licence stated.
_base_ = "./fpn_mavit-t_8xb2-80k_ade20k-512x512.py"
model = dict(backbone=dict(model="mavit_l", drop_path_rate=0.55))
