# box AP 48.6, mask AP 43.5, 48 M parameters (arXiv:2209.15001). Weights: MIT.
_base_ = "./mask-rcnn_dinat-mini_fpn_amp-ms-crop-3x_coco.py"
model = dict(backbone=dict(model="dinat_tiny"))
