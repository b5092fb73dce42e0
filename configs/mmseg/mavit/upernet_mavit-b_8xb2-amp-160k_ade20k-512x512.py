# No published figure at hand (arXiv:2507.00698). Weights: no licence stated.
_base_ = "./upernet_mavit-t_8xb2-amp-160k_ade20k-512x512.py"
model = dict(backbone=dict(model="mavit_b", drop_path_rate=0.4))
