# box AP 52.2, mask AP 45.1, 85 M parameters (arXiv:2209.15001). Weights: MIT.
_base_ = "./cascade-mask-rcnn_dinat-mini_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py"
model = dict(backbone=dict(model="dinat_tiny", drop_path_rate=0.3))
