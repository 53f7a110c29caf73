package org.lora4j.combine;

import java.util.List;

/**
 * What became of one layer.
 *
 * @param path its path
 * @param out the rows of its matrix
 * @param in the columns of its matrix
 * @param ranks the ranks of the adapters that have it; 0 for those that lack it
 * @param rank the rank of the result
 * @param scale the factor of B A of the result, as its configuration gives it
 * @param norm the Frobenius norm of the result's update
 * @param energy the part of the squared norm that the rank keeps; above 1 by rounding alone
 * @param norms the Frobenius norms of the adapters' weighted updates
 * @param cosines the cosine between each two of them; 0 where one is zero
 * @param signConflict the part of the elements at which two of them have different signs, from a sample
 * @param values the singular values of the result, before scale, as far as they are known; empty for {@code cat}
 */
public record LayerReport(
        String path,
        long out,
        long in,
        List<Integer> ranks,
        int rank,
        double scale,
        double norm,
        double energy,
        List<Double> norms,
        List<List<Double>> cosines,
        double signConflict,
        List<Double> values) {
    /** The same with another scale. */
    public LayerReport withScale(double other) {
        return new LayerReport(
                path,
                out,
                in,
                ranks,
                rank,
                other,
                norm * Math.abs(other / scale),
                energy,
                norms,
                cosines,
                signConflict,
                values);
    }
}
