# box AP 55.6, mask AP 48.0 (arXiv:2411.07635). Weights: MIT.
_base_ = "./cascade-mask-rcnn_ravlt-s_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py"
model = dict(backbone=dict(model="ravlt_l", drop_path_rate=0.55))
