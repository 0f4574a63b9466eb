# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Convert checkpoints of other code to folders for `from_pretrained`, and back.

Checkpoints of the authors' code (github.com/youzunzhi/NIM-AdvDef):

    transformers-nim convert --pretraining nim.pth --output_dir nim-vit-base
    transformers-nim convert --pretraining nim.pth --finetuned de3.pth --output_dir nim-vit-base-de3

transformers' masked autoencoders, to start NIM pretraining from:

    transformers-nim convert --vit_mae facebook/vit-mae-base --output_dir nim-from-mae

A denoiser and an image classifier that somebody else has trained, to one De^3 model:

    transformers-nim convert --denoiser nim-vit-base --classifier google/vit-base-patch16-224 --output_dir vit-de3

Models of this package, back to the authors' code:

    transformers-nim convert --to_authors nim-vit-base-de3 --output_dir authors

A trained model, to half its size on disk:

    transformers-nim convert --to_bfloat16 outputs/de3 --output_dir nim-vit-base-de3
"""

import argparse

from ..model.modeling_nim import NIMForRobustImageClassification
from ..utils.cli import make_parser, run_command
from .authors import convert_authors_checkpoint, save_authors_checkpoint, save_bfloat16, save_model
from .vit_mae import load_vit_mae


def main(argv: list[str] | None = None) -> None:
    """Run the command line; see `--help`.

    Raises:
        ValueError: A checkpoint is not what it is taken for.
        OSError: There is none, or the folder cannot be written.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if args.pretraining is None:
        others = ("to_authors", "to_bfloat16", "vit_mae", "denoiser")
        other = next(name for name in others if getattr(args, name) is not None)
        for name in ("finetuned", "num_attention_heads", "decoder_num_attention_heads", "no_norm_pix_loss"):
            if getattr(args, name):
                parser.error(f"argument --{name}: not allowed with --{other}, which says everything by itself")
    if (args.denoiser is None) != (args.classifier is None):
        parser.error("--denoiser and --classifier belong together: one is put in front of the other")
    if args.denoiser is not None:
        save_model(NIMForRobustImageClassification.from_denoiser(args.denoiser, args.classifier), args.output_dir)
    elif args.to_authors is not None:
        save_authors_checkpoint(args.to_authors, args.output_dir)
    elif args.to_bfloat16 is not None:
        save_bfloat16(args.to_bfloat16, args.output_dir)
    elif args.vit_mae is not None:
        save_model(load_vit_mae(args.vit_mae), args.output_dir)
    else:
        convert_authors_checkpoint(
            args.pretraining,
            args.output_dir,
            finetuned=args.finetuned,
            num_attention_heads=args.num_attention_heads,
            decoder_num_attention_heads=args.decoder_num_attention_heads,
            norm_pix_loss=not args.no_norm_pix_loss,
        )


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        __doc__, "{--pretraining,--vit_mae,--denoiser,--to_authors,--to_bfloat16} MODEL --output_dir DIR"
    )
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="the folder to write")
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--pretraining", metavar="A.pt", help="the authors' pretraining checkpoint")
    start.add_argument(
        "--vit_mae", metavar="NAME_OR_PATH", help="a ViTMAEForPreTraining of transformers, on the Hub or in a folder"
    )
    start.add_argument(
        "--denoiser", metavar="NAME_OR_PATH", help="a NIMForPreTraining, to be put in front of --classifier"
    )
    start.add_argument(
        "--to_authors",
        metavar="NAME_OR_PATH",
        help="a model of this package, to be written as pretraining.pth and (of a classifier) finetuned.pth",
    )
    start.add_argument(
        "--to_bfloat16",
        metavar="NAME_OR_PATH",
        help="a model of this package, to be stored with weights rounded to bfloat16; it still computes in float32",
    )
    parser.add_argument(
        "--classifier",
        metavar="NAME_OR_PATH",
        help="with --denoiser: any image classifier of transformers (ViT, a timm model, ConvNeXt, ...); makes a De^3"
        " model",
    )
    authors = parser.add_argument_group("with --pretraining")
    authors.add_argument("--finetuned", metavar="B.pt", help="the authors' fine-tuned classifier; makes a De^3 model")
    authors.add_argument("--num_attention_heads", type=int, metavar="N", help="for encoders of other than paper sizes")
    authors.add_argument("--decoder_num_attention_heads", type=int, metavar="N", help="for other decoders")
    authors.add_argument(
        "--no_norm_pix_loss", action="store_true", help="the decoder predicts pixels, not normalized patches"
    )
    return parser


if __name__ == "__main__":
    run_command(main)
