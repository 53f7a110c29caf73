package org.lora4j.model;

import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import org.lora4j.config.BiasMode;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.PeftCompat;
import org.lora4j.layer.ActiveAdapters;
import org.lora4j.layer.Adapter;
import org.lora4j.layer.LoraLayer;
import org.lora4j.layer.LoraParameter;
import org.lora4j.layer.RowAdapters;
import org.lora4j.layer.SavedParameter;

/** The adapters of one model by name, in the order they were added, and what their presence does to its parameters. */
final class AttachedAdapters implements AutoCloseable {
    private final Map<String, Adapter> byName = new LinkedHashMap<>();
    private final ActiveAdapters active;
    private final Injector injector;

    AttachedAdapters(ActiveAdapters active, Injector injector) {
        this.active = active;
        this.injector = injector;
    }

    List<String> names() {
        return List.copyOf(byName.keySet());
    }

    Collection<Adapter> values() {
        return byName.values();
    }

    Adapter get(String name) {
        Adapter found = byName.get(name);
        if (found == null) {
            throw new IllegalArgumentException(
                    "no adapter \"" + name + "\", only " + byName.keySet() + ": add or load it first");
        }
        return found;
    }

    void checkNew(String name, LoraConfig config) {
        if (name.isEmpty() || name.indexOf('.') >= 0 || name.equals(RowAdapters.BASE)) {
            throw new IllegalArgumentException("an adapter cannot be called \"" + name
                    + "\": use a name that is not empty, not \"" + RowAdapters.BASE + "\" and has no dot");
        }
        if (byName.containsKey(name)) {
            throw new IllegalArgumentException(
                    "there is an adapter \"" + name + "\" already: delete it first or use another name");
        }
        checkBeside(name, config);
    }

    /** @throws IllegalArgumentException if an adapter cannot be on a model with those present but one of its own name */
    void checkBeside(String name, LoraConfig config) {
        Map<String, LoraConfig> present = new LinkedHashMap<>();
        byName.forEach((other, adapter) -> {
            if (!other.equals(name)) {
                present.put(other, adapter.config());
            }
        });
        ParameterMatcher.checkBeside(name, config, present);
        List<String> others =
                byName.keySet().stream().filter(other -> !other.equals(name)).toList();
        boolean biases = config.bias() != BiasMode.NONE
                || others.stream().anyMatch(other -> get(other).config().bias() != BiasMode.NONE);
        if (biases && !others.isEmpty()) {
            throw new IllegalArgumentException("adapter \"" + name + "\" beside " + others
                    + ": adapters that train biases must be alone on a model; set bias to none");
        }
    }

    /** Adapters that copy one parameter, or replace the same rows of a weight, cannot be active at once. */
    void checkTogether(Set<String> wanted) {
        injector.injected().values().forEach(layer -> layer.adapters().checkRows(List.copyOf(wanted)));
        Set<String> parameters = new TreeSet<>();
        for (String name : wanted) {
            for (String path : get(name).saved().keySet()) {
                if (!parameters.add(path)) {
                    throw new IllegalArgumentException("several of the adapters " + wanted + " have a copy of '" + path
                            + "': activate one of them at a time");
                }
            }
        }
        for (String name : wanted) {
            for (String path : get(name).weights().keySet()) {
                if (parameters.contains(path)) {
                    throw new IllegalArgumentException("of the adapters " + wanted + " one has a copy of '" + path
                            + "' and one an update to it: activate one of them at a time");
                }
            }
        }
    }

    /** Takes an adapter out of the layers; it keeps its place among the names for one that replaces it. */
    void detach(String name) {
        injector.injected().values().forEach(layer -> layer.adapters().remove(name));
    }

    void delete(String name) {
        byName.remove(name);
        detach(name);
    }

    /** @throws IllegalStateException if a parameter has adapters, which all rows of a batch share */
    void checkMixable() {
        for (LoraLayer layer : injector.injected().values()) {
            if (layer instanceof LoraParameter && !layer.adapters().names().isEmpty()) {
                throw new IllegalStateException(
                        "parameter '" + layer.path() + "' has the adapters "
                                + layer.adapters().names()
                                + ", and all rows of a batch share a parameter: use adapters of targetModules for mixed batches");
            }
        }
    }

    /** Before copies are moved into parameters, so that they move base data and no sum. */
    private void suspend() {
        injector.injected().values().forEach(LoraLayer::suspend);
    }

    /** See {@link LoraModel#refresh}. */
    void refresh() {
        injector.injected().values().forEach(LoraLayer::refresh);
    }

    /** Puts the base model's own parameters back, for good. */
    void deactivateSaved() {
        suspend();
        byName.values().forEach(adapter -> adapter.saved().values().forEach(SavedParameter::deactivate));
    }

    private void deactivate(SavedParameter saved) {
        if (saved.trains() || !active.has(PeftCompat.RESIDUAL_STAYS)) {
            saved.deactivate();
        } else {
            saved.activate();
        }
    }

    @Override
    public void close() {
        byName.values().forEach(Adapter::close);
        byName.clear();
    }

    void attach(AdapterFactory.Made made, boolean trainable) {
        Adapter adapter = made.adapter();
        injector.inject(made.layers());
        byName.put(adapter.name(), adapter);
        adapter.weights()
                .forEach((path, weights) -> injector.layer(path).adapters().add(adapter.name(), weights));
        adapter.tokens()
                .forEach((path, rows) -> made.tokens()
                        .getOrDefault(path, List.of())
                        .forEach(layer -> layer.adapters().add(adapter.name(), rows)));
        adapter.trainable(trainable);
        apply();
    }

    /** Brings parameters and gradients in line with what is active. */
    void apply() {
        suspend();
        byName.values().forEach(adapter -> {
            if (!isOn(adapter)) {
                adapter.requiresGrad(false);
                adapter.saved().values().forEach(this::deactivate);
            }
        });
        byName.values().stream().filter(this::isOn).forEach(adapter -> {
            adapter.saved().values().forEach(SavedParameter::activate);
            adapter.requiresGrad(adapter.trainable());
        });
        refresh();
    }

    private boolean isOn(Adapter adapter) {
        return active.enabled() && active.names().contains(adapter.name());
    }

    /** Work that may fail to read a file. */
    interface Work<E extends Exception> {
        void run() throws E;
    }

    /** Runs something while the base model's own parameters are in place. */
    <E extends Exception> void withoutSaved(Work<E> work) throws E {
        deactivateSaved();
        try {
            work.run();
        } finally {
            apply();
        }
    }
}
