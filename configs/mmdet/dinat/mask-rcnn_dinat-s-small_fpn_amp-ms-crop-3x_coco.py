# box AP 48.6, mask AP 43.5, 69 M parameters (arXiv:2209.15001). Weights: MIT.
_base_ = "./mask-rcnn_dinat-s-tiny_fpn_amp-ms-crop-3x_coco.py"
model = dict(backbone=dict(model="dinat_s_small", drop_path_rate=0.35))
