package org.lora4j.layer;

import org.bytedeco.pytorch.Generator;
import org.bytedeco.pytorch.GeneratorOptional;
import org.bytedeco.pytorch.LongOptional;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.StringViewOptional;
import org.bytedeco.pytorch.T_TensorTensorTensor_T;
import org.bytedeco.pytorch.T_TensorTensor_T;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.Tensors;

/**
 * The singular value decomposition of a matrix (m, n), or a part of it.
 *
 * @param u left singular vectors, shape (m, k)
 * @param s singular values, shape (k), falling
 * @param vh right singular vectors, shape (k, n)
 */
record Svd(Tensor u, Tensor s, Tensor vh) {
    /** All min(m, n) components. */
    static Svd of(Tensor matrix) {
        try (StringViewOptional driver = new StringViewOptional();
                T_TensorTensorTensor_T found = torch.linalg_svd(matrix, false, driver)) {
            return new Svd(new Tensor(found.get0()), new Tensor(found.get1()), new Tensor(found.get2()));
        }
    }

    /**
     * The first min(q, m, n) components, found with a random basis (Halko, Martinsson and Tropp, 2009, algorithm 5.1), the
     * way {@code torch.svd_lowrank} goes.
     *
     * @param iterations the power iterations that sharpen the basis
     * @param random where the basis is drawn; null for LibTorch's generator
     */
    static Svd randomized(Tensor matrix, long q, int iterations, @Nullable Generator random) {
        boolean wide = matrix.size(0) < matrix.size(1);
        Tensor tall = wide ? matrix.t() : matrix;
        Tensor basis = basis(tall.matmul(normal(tall, q, random)));
        for (int i = 0; i < iterations; i++) {
            basis = basis(tall.matmul(basis(tall.t().matmul(basis))));
        }
        Svd small = of(basis.t().matmul(tall));
        Tensor u = basis.matmul(small.u);
        return wide ? new Svd(small.vh.t(), small.s, u.t()) : new Svd(u, small.s, small.vh);
    }

    /** Orthonormal columns that span those of a matrix. */
    private static Tensor basis(Tensor matrix) {
        try (T_TensorTensor_T qr = torch.linalg_qr(matrix)) {
            return new Tensor(qr.get0());
        }
    }

    private static Tensor normal(Tensor like, long columns, @Nullable Generator random) {
        long[] shape = {like.size(1), columns};
        TensorOptions options = new TensorOptions(Tensors.type(like));
        Tensor drawn = random == null
                ? torch.randn(shape, options)
                : torch.randn(shape, new GeneratorOptional(random), options);
        return drawn.to(like.device(), Tensors.type(like));
    }

    /** The components [first, first + count). */
    Svd part(long first, long count) {
        return new Svd(u.narrow(1, first, count), s.narrow(0, first, count), vh.narrow(0, first, count));
    }

    /** The same decomposition with the largest element of every right singular vector positive, so that it is the only one. */
    Svd withPositivePeaks() {
        Tensor at = vh.abs().argmax(new LongOptional(1), true);
        Tensor signs = vh.gather(1, at).sign();
        return new Svd(u.mul(signs.t()), s, vh.mul(signs));
    }

    /** The factors with {@code scale * B A = U S Vh} that share the singular values evenly. */
    Factors balanced(double scale) {
        Tensor root = s.div(new Scalar(scale)).sqrt();
        return new Factors(root.unsqueeze(1).mul(vh), u.mul(root));
    }
}
