# box AP 49.8, mask AP 44.6 (arXiv:2411.07635). Weights: MIT.
_base_ = "./mask-rcnn_ravlt-t_fpn_amp-1x_coco.py"
model = dict(backbone=dict(model="ravlt_s", drop_path_rate=0.15))
