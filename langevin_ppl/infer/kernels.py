"""The kernels under NumPyro's names: each is `Langevin` with its kernel filled in."""

from langevin_ppl import kernels
from langevin_ppl.infer.langevin import Langevin

__all__ = [
    "BADODAB",
    "BAOAB",
    "GHMC",
    "KLMC",
    "MALA",
    "MTULA",
    "OBABO",
    "PSGLD",
    "SGHMC",
    "SGLD",
    "SGNHT",
    "STULA",
    "TBAOAB",
    "TMALA",
    "TMALAC",
    "TSGLD",
    "TULA",
    "TULAC",
    "TUSLA",
    "UBU",
    "ULA",
    "CyclicalSGLD",
    "Irreversible",
    "LeimkuhlerMatthews",
    "SplitGHMC",
]


class SplitGHMC(Langevin):
    """`langevin_ppl.split_ghmc`, the default of `langevin_ppl.sample`."""

    kernel = kernels.split_ghmc


class GHMC(Langevin):
    """`langevin_ppl.ghmc`."""

    kernel = kernels.ghmc


class MALA(Langevin):
    """`langevin_ppl.mala`."""

    kernel = kernels.mala


class TMALA(Langevin):
    """`langevin_ppl.tmala`."""

    kernel = kernels.tmala


class TMALAC(Langevin):
    """`langevin_ppl.tmalac`."""

    kernel = kernels.tmalac


class ULA(Langevin):
    """`langevin_ppl.ula`: biased, of the order of the step size."""

    kernel = kernels.ula


class LeimkuhlerMatthews(Langevin):
    """`langevin_ppl.leimkuhler_matthews`: biased, of the order of the squared step size."""

    kernel = kernels.leimkuhler_matthews


class Irreversible(Langevin):
    """`langevin_ppl.irreversible`: biased, of the order of the step size."""

    kernel = kernels.irreversible


class TULA(Langevin):
    """`langevin_ppl.tula`: biased, of the order of the step size."""

    kernel = kernels.tula


class TULAC(Langevin):
    """`langevin_ppl.tulac`: biased, of the order of the step size."""

    kernel = kernels.tulac


class MTULA(Langevin):
    """`langevin_ppl.mtula`: biased, of the order of the step size."""

    kernel = kernels.mtula


class TUSLA(Langevin):
    """`langevin_ppl.tusla`: biased, of the order of the root of the step size."""

    kernel = kernels.tusla


class STULA(Langevin):
    """`langevin_ppl.stula`: biased, of the order of the root of the step size."""

    kernel = kernels.stula


class BAOAB(Langevin):
    """`langevin_ppl.baoab`: biased, of the order of the squared step size."""

    kernel = kernels.baoab


class OBABO(Langevin):
    """`langevin_ppl.obabo`: biased, of the order of the squared step size."""

    kernel = kernels.obabo


class UBU(Langevin):
    """`langevin_ppl.ubu`: biased, of the order of the squared step size."""

    kernel = kernels.ubu


class TBAOAB(Langevin):
    """`langevin_ppl.tbaoab`: biased, of the order of the step size."""

    kernel = kernels.tbaoab


class KLMC(Langevin):
    """`langevin_ppl.klmc`: biased, of the order of the step size."""

    kernel = kernels.klmc


class CyclicalSGLD(Langevin):
    """`langevin_ppl.cyclical_sgld`: biased, and its draws have no weights in NumPyro.

    Those of the first part of every cycle, which explore, have to be left out by their number.
    """

    kernel = kernels.cyclical_sgld


class SGLD(Langevin):
    """`langevin_ppl.sgld`: biased, of the order of the step size."""

    kernel = kernels.sgld


class TSGLD(Langevin):
    """`langevin_ppl.tsgld`: biased, of the order of the step size."""

    kernel = kernels.tsgld


class PSGLD(Langevin):
    """`langevin_ppl.psgld`: biased, and not less at smaller steps of a fixed smoothing."""

    kernel = kernels.psgld


class SGHMC(Langevin):
    """`langevin_ppl.sghmc`: biased, of the order of the step size."""

    kernel = kernels.sghmc


class SGNHT(Langevin):
    """`langevin_ppl.sgnht`: biased, of the order of the step size."""

    kernel = kernels.sgnht


class BADODAB(Langevin):
    """`langevin_ppl.badodab`: biased, of the order of the squared step size."""

    kernel = kernels.badodab
