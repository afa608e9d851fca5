"""An ONNX graph rewritten to give the same numbers in less time."""

from typing import TYPE_CHECKING

import sympy  # PyTorch needs it

if TYPE_CHECKING:  # onnxscript is an extra, and other formats do without it
    from onnxscript import ir

_CHANNELS_LAST = [0, 2, 3, 1]


def simplify(model: "ir.Model") -> None:
    """
    Take the rows of a map plus a smaller map without enlarging the smaller one, in place.

    A level without an output convolution is read in rows, channels last. There the sum is one over
    parts of 2 x 2 pixels, which ONNX Runtime computes in the time of a plain sum; its Resize runs
    on one thread.
    """
    from onnxscript.rewriter import RewriteRuleClassBase, RewriteRuleSet, rewrite

    class RowsOfSum(RewriteRuleClassBase):
        def pattern(self, op, fine, coarse, sizes, shape):
            enlarged = op.Resize(
                coarse,
                None,
                None,
                sizes,
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
                _outputs=["enlarged"],
            )
            pixels = op.Transpose(op.Add(fine, enlarged), perm=_CHANNELS_LAST)
            return op.Reshape(pixels, shape, _outputs=["rows"])

        def check(self, context, coarse, enlarged, rows, **_):
            if any(x.shape is None for x in (coarse, enlarged, rows)):
                return False
            count, channels = coarse.shape[:2]
            if not isinstance(channels, int) or rows.shape[-1] != channels:
                return False
            flat = list(rows.shape[:-2]) in ([count], [])
            return flat and _is_double(coarse.shape, enlarged.shape)

        def rewrite(self, op, fine, coarse, rows, **_):
            coarse = op.Transpose(coarse, perm=_CHANNELS_LAST)
            coarse = op.Unsqueeze(coarse, op.Constant(value_ints=[2, 4]))  # (N, h, 1, w, 1, C)
            parts = op.Mul(op.Shape(coarse), op.Constant(value_ints=[1, 1, 2, 1, 2, 1]))
            fine = op.Reshape(op.Transpose(fine, perm=_CHANNELS_LAST), parts)
            # (N, H * W, C) or (N * H * W, C)
            shape = [0] * (len(rows.shape) - 2) + [-1, rows.shape[-1]]
            return op.Reshape(op.Add(fine, coarse), op.Constant(value_ints=shape))

    rewrite(model, RewriteRuleSet([RowsOfSum.rule()], commute=True))


def _is_double(coarse: "ir.Shape", fine: "ir.Shape") -> bool:
    """Whether the maps' height and width are twice those of `coarse`, whatever the input's are."""
    # Sizes that depend on the input are expressions, as "4*(((s14 + 31)//32))".
    small, large = (
        [sympy.sympify(str(getattr(x, "value", x))) for x in shape[2:]] for shape in (coarse, fine)
    )
    return [2 * x for x in small] == large
