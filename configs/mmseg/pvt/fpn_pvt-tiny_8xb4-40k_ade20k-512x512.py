# mIoU 35.7 (arXiv:2102.12122). Weights: Apache-2.0.
# Settings: github.com/whai362/PVT. Differs: there the last stage runs without the class token that it was trained
# with. The authors' code gives more than the paper: 36.6, 41.9, 43.5 and 43.5 for tiny to large.
_base_ = ["../_base_/models/fpn.py", "../_base_/datasets/ade20k_aligned_8xb4.py", "../_base_/schedules/40k.py"]
model = dict(backbone=dict(model="pvt_tiny", drop_path_rate=0.1))
