package org.lora4j.cli;

import org.jspecify.annotations.Nullable;
import org.lora4j.combine.RankRule;
import picocli.CommandLine.Option;

/** The ways to choose ranks, of which at most one may be given. */
final class RankOptions {
    @Option(names = "--rank", paramLabel = "R", description = "The same rank everywhere")
    private @Nullable Integer rank;

    @Option(
            names = "--energy",
            paramLabel = "E",
            description = "At each layer the lowest rank that keeps this part of the squared norm, such as 0.99")
    private @Nullable Double energy;

    @Option(
            names = "--total-rank",
            paramLabel = "N",
            description = "This sum of all ranks, shared so that all layers together keep the most of the squared norm")
    private @Nullable Long total;

    RankRule rule() {
        if (rank != null) {
            return new RankRule.Fixed(rank);
        }
        if (energy != null) {
            return new RankRule.Energy(energy);
        }
        if (total != null) {
            return new RankRule.Total(total);
        }
        throw new IllegalStateException("no rank was given");
    }
}
