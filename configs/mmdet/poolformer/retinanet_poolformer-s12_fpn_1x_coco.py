# box AP 36.2 (arXiv:2111.11418). Weights: Apache-2.0.
# Settings: github.com/sail-sg/poolformer (FORK_LAST3). The pyramid does not take the first map, which has no norm.
_base_ = ["../_base_/models/retinanet.py", "../_base_/schedules/1x_boxes.py"]
model = dict(backbone=dict(model="poolformer_s12", map_norm=["identity", "groupnorm", "groupnorm", "groupnorm"]))
