# box AP 49.3, mask AP 44.0, 70 M parameters (arXiv:2209.15001). Weights: MIT.
_base_ = "./mask-rcnn_dinat-mini_fpn_amp-ms-crop-3x_coco.py"
model = dict(backbone=dict(model="dinat_small", drop_path_rate=0.35))
