# box AP 48.6, mask AP 43.7 (arXiv:2303.08810). Weights: MIT.
_base_ = "./mask-rcnn_biformer-small_fpn_amp-1x_coco.py"
model = dict(backbone=dict(model="biformer_base", drop_path_rate=0.3))
