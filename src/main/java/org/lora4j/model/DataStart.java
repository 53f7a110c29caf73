package org.lora4j.model;

import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.bytedeco.pytorch.Tensor;
import org.lora4j.config.CordaConfig;
import org.lora4j.config.EvaConfig;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.LoraGaConfig;
import org.lora4j.layer.Corda;
import org.lora4j.layer.EvaRanks;
import org.lora4j.layer.EvaSearch;
import org.lora4j.layer.InputCovariance;
import org.lora4j.layer.LoraGa;
import org.lora4j.layer.LoraLayer;
import org.lora4j.layer.Start;

/** Where a new adapter starts, for the initialisations that look at data: {@code eva}, {@code corda} and {@code lora_ga}. */
final class DataStart {
    /** EVA goes through the batches again until all components are found, but not for ever. */
    private static final int MOST_PASSES = 100;

    /**
     * What was found.
     *
     * @param config the configuration with the ranks that {@code eva} gave
     * @param starts the start of each linear layer, by path
     */
    record Found(LoraConfig config, Map<String, Start> starts) {}

    private final LoraConfig config;
    private final Map<String, LoraLayer> linear = new LinkedHashMap<>();
    private final List<String> others;
    private final Iterable<? extends CalibrationBatch> batches;

    /**
     * @param targets the layers of the configuration, which are in the model
     * @throws IllegalArgumentException if no layer is linear, or there is no batch
     */
    DataStart(LoraConfig config, Map<String, LoraLayer> targets, Iterable<? extends CalibrationBatch> batches) {
        this.config = config;
        this.batches = batches;
        targets.forEach((path, layer) -> {
            if (layer.isMatrix()) {
                linear.put(path, layer);
            }
        });
        others = targets.keySet().stream()
                .filter(path -> !linear.containsKey(path))
                .toList();
        if (linear.isEmpty()) {
            throw new IllegalArgumentException("initLoraWeights is " + config.initLoraWeights()
                    + ", which starts linear layers, but targetModules names none: " + targets.keySet());
        }
        if (!batches.iterator().hasNext()) {
            throw new IllegalArgumentException("initLoraWeights is " + config.initLoraWeights()
                    + ", but there is no calibration batch: give some");
        }
    }

    Found run() {
        return switch (config.initLoraWeights().kind()) {
            case EVA -> eva();
            case CORDA -> corda();
            case LORA_GA -> loraGa();
            default ->
                throw new IllegalArgumentException("initLoraWeights is " + config.initLoraWeights()
                        + ", which looks at no data: call addAdapter without calibration batches");
        };
    }

    private Found eva() {
        EvaConfig settings = EvaConfig.of(config);
        Map<String, Long> widths = new LinkedHashMap<>();
        linear.forEach((path, layer) -> widths.put(path, layer.shapeA(1)[1]));
        try (EvaSearch search = new EvaSearch(config, widths)) {
            boolean done = step(search, batches.iterator().next(), settings);
            for (int pass = 0; pass < MOST_PASSES && !done; pass++) {
                for (CalibrationBatch batch : batches) {
                    done = step(search, batch, settings);
                    if (done) {
                        break;
                    }
                }
            }
            if (!done) {
                throw new IllegalStateException("eva has not found the components of " + search.missing() + " in "
                        + MOST_PASSES + " passes over the batches: give larger batches, or lower r, rho or tau");
            }
            LoraConfig adjusted = EvaRanks.config(config, search.ranks(), others);
            Map<String, Start> starts = new LinkedHashMap<>();
            search.ranks().forEach((path, rank) -> {
                LoraLayer layer = linear.get(path);
                if (rank > 0 && layer != null) {
                    starts.put(path, search.start(path, layer.matrix(layer.weight())));
                }
            });
            return new Found(adjusted, starts);
        }
    }

    private boolean step(EvaSearch search, CalibrationBatch batch, EvaConfig settings) {
        Map<LoraLayer, Calibration.Inputs> watched = new LinkedHashMap<>();
        linear.forEach((path, layer) -> {
            if (search.wants(path)) {
                watched.put(layer, (x, mask) -> search.add(path, EvaSearch.rows(x, mask, null, settings)));
            }
        });
        Calibration.watch(batch, watched);
        return search.endBatch();
    }

    private Found corda() {
        CordaConfig settings = CordaConfig.of(config);
        Map<String, InputCovariance> sums = new LinkedHashMap<>();
        Map<LoraLayer, Calibration.Inputs> watched = new LinkedHashMap<>();
        linear.forEach((path, layer) -> {
            InputCovariance sum = new InputCovariance(settings);
            sums.put(path, sum);
            watched.put(layer, (x, mask) -> sum.add(x));
        });
        try {
            for (CalibrationBatch batch : batches) {
                Calibration.watch(batch, watched);
            }
            return each((path, layer) -> {
                InputCovariance sum = sums.get(path);
                if (sum == null || sum.samples() == 0) {
                    throw new IllegalArgumentException("the calibration batches never reach this layer");
                }
                return Corda.start(layer.matrix(layer.weight()), rank(layer), scale(layer), sum.mean(), settings);
            });
        } finally {
            sums.values().forEach(InputCovariance::close);
        }
    }

    private Found loraGa() {
        LoraGaConfig settings = LoraGaConfig.of(config);
        Map<LoraLayer, Tensor> gradients = Calibration.gradients(batches, linear.values());
        try {
            return each((path, layer) -> LoraGa.start(
                    layer.matrix(layer.weight()), rank(layer), scale(layer), gradients.get(layer), settings));
        } finally {
            gradients.values().forEach(Tensor::close);
        }
    }

    private int rank(LoraLayer layer) {
        return config.rankFor(layer.configPath());
    }

    private double scale(LoraLayer layer) {
        return config.scale(layer.configPath());
    }

    private interface Work {
        Start at(String path, LoraLayer layer);
    }

    private Found each(Work work) {
        Map<String, Start> starts = new LinkedHashMap<>();
        linear.forEach((path, layer) -> {
            try {
                starts.put(path, work.at(path, layer));
            } catch (IllegalArgumentException e) {
                throw new IllegalArgumentException("layer '" + path + "': " + e.getMessage(), e);
            }
        });
        return new Found(config, starts);
    }
}
