# box AP 52.9, mask AP 45.8, 108 M parameters (arXiv:2209.15001). Weights: MIT.
_base_ = "./cascade-mask-rcnn_dinat-mini_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py"
model = dict(backbone=dict(model="dinat_small", drop_path_rate=0.5))
