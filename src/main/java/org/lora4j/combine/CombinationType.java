package org.lora4j.combine;

import java.util.Arrays;
import java.util.Locale;
import java.util.stream.Collectors;

/**
 * How adapters are combined: the eleven types of PEFT's {@code add_weighted_adapter}, and more. All work on the updates
 * {@code w_i s_i B_i A_i} that the adapters really make; where the outcome has no low rank it is approximated by its
 * leading singular components.
 */
public enum CombinationType {
    /** The best approximation, of the largest of the ranks, of the weighted sum. */
    SVD(Pruning.NONE, Merge.SUM, Rank.LARGEST),
    /** The weighted sum, exactly; its rank is the numerical one. */
    LINEAR(Pruning.NONE, Merge.SUM, Rank.NUMERICAL),
    /** The weighted sum, exactly: the factors side by side. The rank is the sum of the ranks. */
    CAT(Pruning.NONE, Merge.SUM, Rank.SUM),
    /** Trim the small elements, elect a sign for each, average those that have it (arXiv:2306.01708). */
    TIES(Pruning.MAGNITUDE, Merge.ELECT, Rank.SUM),
    /** {@link #TIES} with the largest of the ranks. */
    TIES_SVD(Pruning.MAGNITUDE, Merge.ELECT, Rank.LARGEST),
    /** Drop elements at random, rescale the rest, add (arXiv:2311.03099). */
    DARE_LINEAR(Pruning.RANDOM, Merge.SUM, Rank.SUM),
    /** Drop elements at random, rescale the rest, then as {@link #TIES}. */
    DARE_TIES(Pruning.RANDOM, Merge.ELECT, Rank.SUM),
    /** {@link #DARE_LINEAR} with the largest of the ranks. */
    DARE_LINEAR_SVD(Pruning.RANDOM, Merge.SUM, Rank.LARGEST),
    /** {@link #DARE_TIES} with the largest of the ranks. */
    DARE_TIES_SVD(Pruning.RANDOM, Merge.ELECT, Rank.LARGEST),
    /** Trim the small elements, add. */
    MAGNITUDE_PRUNE(Pruning.MAGNITUDE, Merge.SUM, Rank.SUM),
    /** {@link #MAGNITUDE_PRUNE} with the largest of the ranks. */
    MAGNITUDE_PRUNE_SVD(Pruning.MAGNITUDE, Merge.SUM, Rank.LARGEST),
    /** {@link #LINEAR}, never of less than the numerical rank. */
    EXACT(Pruning.NONE, Merge.SUM, Rank.NUMERICAL),
    /** Drop elements at random, small ones of a row more often, rescale, then as {@link #TIES} (arXiv:2406.11617). */
    DELLA(Pruning.BY_RANK, Merge.ELECT, Rank.SUM),
    /** Trim the small elements and the largest ones, add (arXiv:2312.06795). */
    BREADCRUMBS(Pruning.OUTLIERS, Merge.SUM, Rank.SUM),
    /**
     * Keep the elements that differ most between the adapters, weigh each adapter by their energy, erase minority signs
     * (arXiv:2408.07990).
     */
    SCE(Pruning.NONE, Merge.SCE, Rank.SUM),
    /** The point between two updates on the arc that joins their directions, by the second one's part of the weights. */
    SLERP(Pruning.NONE, Merge.SUM, Rank.NUMERICAL);

    /** What happens to each update before they meet. */
    enum Pruning {
        NONE,
        MAGNITUDE,
        RANDOM,
        BY_RANK,
        OUTLIERS
    }

    /** How the updates become one. */
    enum Merge {
        SUM,
        ELECT,
        SCE
    }

    /** The rank where none is asked for. */
    enum Rank {
        LARGEST,
        SUM,
        NUMERICAL
    }

    private final Pruning pruning;
    private final Merge merge;
    private final Rank rank;

    CombinationType(Pruning pruning, Merge merge, Rank rank) {
        this.pruning = pruning;
        this.merge = merge;
        this.rank = rank;
    }

    Pruning pruning() {
        return pruning;
    }

    Merge merge() {
        return merge;
    }

    RankRule defaultRank() {
        return switch (rank) {
            case LARGEST -> new RankRule.Largest();
            case SUM -> new RankRule.Sum();
            case NUMERICAL -> new RankRule.Numerical();
        };
    }

    /** Whether {@code density} means something, and so must be given. */
    boolean needsDensity() {
        return pruning != Pruning.NONE || merge == Merge.SCE;
    }

    /** Whether the outcome is a sum of the updates, so that no dense matrix is needed. */
    boolean isFactored() {
        return pruning == Pruning.NONE && merge == Merge.SUM;
    }

    /** Whether PEFT combines A and B by themselves: the types of PEFT without an SVD, but {@code cat}. */
    boolean isOfFactorsInPeft() {
        return switch (this) {
            case LINEAR, TIES, DARE_LINEAR, DARE_TIES, MAGNITUDE_PRUNE -> true;
            default -> false;
        };
    }

    /** PEFT's name, such as {@code dare_ties_svd}. */
    public String peftName() {
        return name().toLowerCase(Locale.ROOT);
    }

    /**
     * The type of a name.
     *
     * @throws IllegalArgumentException listing the names, if there is none
     */
    public static CombinationType of(String name) {
        for (CombinationType type : values()) {
            if (type.peftName().equals(name.replace('-', '_').toLowerCase(Locale.ROOT))) {
                return type;
            }
        }
        throw new IllegalArgumentException("there is no combination type \"" + name + "\": use one of "
                + Arrays.stream(values()).map(CombinationType::peftName).collect(Collectors.joining(", ")));
    }

    @Override
    public String toString() {
        return peftName();
    }
}
