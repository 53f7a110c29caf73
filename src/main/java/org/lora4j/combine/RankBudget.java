package org.lora4j.combine;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Shares a number of ranks among layers so that they keep the most of the squared norm of all updates together: every layer
 * gets 1, and the rest goes to the largest singular values, wherever they are.
 */
final class RankBudget {
    private record Value(String layer, double energy) {}

    private RankBudget() {}

    /**
     * The rank of each layer.
     *
     * @param energies the squares of the singular values by layer, largest first
     * @param step for layers whose rank must be a multiple of something, that; 1 for those that are missing
     * @throws IllegalArgumentException if there are less ranks than layers
     */
    static Map<String, Integer> share(
            RankRule.Total budget, Map<String, double[]> energies, Map<String, Integer> step) {
        Map<String, Integer> ranks = new LinkedHashMap<>();
        List<Value> values = new ArrayList<>();
        long left = budget.ranks();
        for (Map.Entry<String, double[]> layer : energies.entrySet()) {
            int own = step.getOrDefault(layer.getKey(), 1);
            ranks.put(layer.getKey(), own);
            left -= own;
            for (int i = 1; i < layer.getValue().length; i++) {
                values.add(new Value(layer.getKey(), layer.getValue()[i] / own));
            }
        }
        if (left < 0) {
            throw new IllegalArgumentException("a total of " + budget.ranks() + " ranks is less than the "
                    + (budget.ranks() - left) + " that " + energies.size() + " layers need at least");
        }
        values.sort(Comparator.comparingDouble(Value::energy).reversed());
        for (Value value : values) {
            int own = step.getOrDefault(value.layer(), 1);
            if (own <= left && value.energy() > 0) {
                ranks.merge(value.layer(), own, Integer::sum);
                left -= own;
            }
        }
        return ranks;
    }
}
