"""An ONNX graph rewritten to give the same numbers in less time."""

from typing import TYPE_CHECKING

import sympy  # PyTorch needs it

if TYPE_CHECKING:  # onnxscript is an extra, and other formats do without it
    from onnxscript import ir

_CHANNELS_LAST = [0, 2, 3, 1]


def simplify(model: "ir.Model", int8: bool) -> None:
    """
    Enlarge maps by a factor where the exporter computes their sizes, in place. ONNX Runtime then
    keeps them in the layout of the convolutions around them.

    Args:
        int8: the file will be quantised: what is read in rows, channels last, of a map plus a
            smaller map, as of a level without an output convolution, is summed over parts of 2 x 2
            pixels without enlarging the smaller map. Where the convolutions around it are of 8
            bits, that enlarging would run on one thread; in float32 it is as fast.
    """
    from onnxscript.rewriter import RewriteRuleClassBase, RewriteRuleSet, rewrite

    nearest = {
        "mode": "nearest",
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    }

    class RowsOfSum(RewriteRuleClassBase):
        def pattern(self, op, fine, coarse, sizes, shape):
            enlarged = op.Resize(coarse, None, None, sizes, **nearest, _outputs=["enlarged"])
            pixels = op.Transpose(op.Add(fine, enlarged), perm=_CHANNELS_LAST)
            return op.Reshape(pixels, shape, _outputs=["rows"])

        def check(self, context, coarse, enlarged, rows, **_):
            if not _is_double(coarse.shape, enlarged.shape) or rows.shape is None:
                return False
            count, channels = coarse.shape[:2]
            if not isinstance(channels, int) or rows.shape[-1] != channels:
                return False
            return list(rows.shape[:-2]) in ([count], [])

        def rewrite(self, op, fine, coarse, rows, **_):
            coarse = op.Transpose(coarse, perm=_CHANNELS_LAST)
            coarse = op.Unsqueeze(coarse, op.Constant(value_ints=[2, 4]))  # (N, h, 1, w, 1, C)
            parts = op.Mul(op.Shape(coarse), op.Constant(value_ints=[1, 1, 2, 1, 2, 1]))
            fine = op.Reshape(op.Transpose(fine, perm=_CHANNELS_LAST), parts)
            # (N, H * W, C) or (N * H * W, C)
            shape = [0] * (len(rows.shape) - 2) + [-1, rows.shape[-1]]
            return op.Reshape(op.Add(fine, coarse), op.Constant(value_ints=shape))

    class Doubled(RewriteRuleClassBase):
        def pattern(self, op, coarse, sizes):
            return op.Resize(coarse, None, None, sizes, **nearest, _outputs=["enlarged"])

        def check(self, context, coarse, enlarged, **_):
            return _is_double(coarse.shape, enlarged.shape)

        def rewrite(self, op, coarse, **_):
            factors = op.Constant(value_floats=[1.0, 1.0, 2.0, 2.0])
            return op.Resize(coarse, None, factors, **nearest)

    if int8:
        rewrite(model, RewriteRuleSet([RowsOfSum.rule()], commute=True))
    rewrite(model, [Doubled.rule()])


def _is_double(coarse: "ir.Shape | None", fine: "ir.Shape | None") -> bool:
    """Whether height and width alone are twice those of `coarse`, whatever the input's are."""
    if coarse is None or fine is None or coarse[:2] != fine[:2]:
        return False
    # Sizes that depend on the input are expressions, as "4*(((s14 + 31)//32))".
    small, large = (
        [sympy.sympify(str(getattr(x, "value", x))) for x in shape[2:]] for shape in (coarse, fine)
    )
    return [2 * x for x in small] == large
