package org.lora4j.combine;

/** Which rank an update gets at each layer. Never more than the smaller side of the layer's matrix, never less than 1. */
public sealed interface RankRule {
    /** The same everywhere. */
    record Fixed(int rank) implements RankRule {
        public Fixed {
            if (rank < 1) {
                throw new IllegalArgumentException("rank is " + rank + ", but it must be 1 or more");
            }
        }

        @Override
        public String toString() {
            return "rank " + rank;
        }
    }

    /** At each layer the lowest that keeps a part of the squared norm. */
    record Energy(double part) implements RankRule {
        public Energy {
            if (!(part > 0 && part <= 1)) {
                throw new IllegalArgumentException(
                        "energy is " + part + ", but it must be above 0 and at most 1, such as 0.99");
            }
        }

        @Override
        public String toString() {
            return "energy " + part;
        }
    }

    /** Those that keep the most of the squared norm of all layers together, with this sum of all ranks. */
    record Total(long ranks) implements RankRule {
        public Total {
            if (ranks < 1) {
                throw new IllegalArgumentException("the total of all ranks is " + ranks + ", but it must be 1 or more");
            }
        }

        @Override
        public String toString() {
            return "total rank " + ranks;
        }
    }

    /** All components above the precision of float32. */
    record Numerical() implements RankRule {
        @Override
        public String toString() {
            return "numerical rank";
        }
    }

    /** The largest rank of the adapters at a layer. */
    record Largest() implements RankRule {
        @Override
        public String toString() {
            return "largest rank";
        }
    }

    /** The sum of the ranks of the adapters at a layer. */
    record Sum() implements RankRule {
        @Override
        public String toString() {
            return "sum of ranks";
        }
    }
}
