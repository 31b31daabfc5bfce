"""Fine-tuning a detector from its ONNX file alone: what the trainers `head` and `full` are made of.

`recipes` says which families there are; `families`, `rtmdet` and `detr` where each has its last layers. `detector`
takes a file apart, with `cut`, `class_layer`, `suppression` and `known_shapes`; `onnx_torch` makes a torch module of a
part, with `onnx_ops` and `onnx_decoder`. `learn` trains it, with `assign`, `losses` and `set_loss`; `export` writes it
back.
"""
