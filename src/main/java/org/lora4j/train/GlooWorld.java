package org.lora4j.train;

import java.util.List;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.javacpp.chrono.Milliseconds;
import org.bytedeco.pytorch.GlooDeviceVector;
import org.bytedeco.pytorch.ProcessGroupGloo;
import org.bytedeco.pytorch.TCPStore;
import org.bytedeco.pytorch.TCPStoreOptions;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.Work;
import org.lora4j.ops.Tensors;

/** Processes that meet at a TCP store and add up tensors with Gloo, LibTorch's collectives for CPUs. */
final class GlooWorld implements World {
    private static final long TIMEOUT_MILLIS = 10 * 60 * 1000;

    private final int rank;
    private final int size;
    private final TCPStore store;
    private final ProcessGroupGloo group;

    GlooWorld(int rank, int size, String host, int port, boolean hosts) {
        this.rank = rank;
        this.size = size;
        try (PointerScope scope = new PointerScope()) {
            TCPStoreOptions options = new TCPStoreOptions();
            options.port((short) port);
            options.isServer(hosts);
            options.waitWorkers(false);
            options.timeout(new Milliseconds(TIMEOUT_MILLIS));
            store = Tensors.keep(new TCPStore(host, options));
            boolean local = host.equals("localhost") || host.startsWith("127.");
            ProcessGroupGloo.Options gloo = ProcessGroupGloo.Options.create(new Milliseconds(TIMEOUT_MILLIS));
            gloo.devices(new GlooDeviceVector(
                    local
                            ? ProcessGroupGloo.createDeviceForHostname("127.0.0.1")
                            : ProcessGroupGloo.createDefaultDevice()));
            group = Tensors.keep(new ProcessGroupGloo(store, rank, size, gloo));
        } catch (RuntimeException e) {
            throw new IllegalStateException(
                    "process " + rank + " of " + size + " cannot reach the others through " + host + ":" + port + " ("
                            + Memory.firstLine(e)
                            + "): check MASTER_ADDR and MASTER_PORT, and that all processes are started",
                    e);
        }
    }

    @Override
    public int rank() {
        return rank;
    }

    @Override
    public int size() {
        return size;
    }

    @Override
    public void sum(List<Tensor> tensors) {
        try (PointerScope scope = new PointerScope()) {
            for (Tensor tensor : tensors) {
                Work work = group.allreduce(new TensorVector(tensor));
                work._wait();
            }
        }
    }

    @Override
    public void close() {
        group.close();
        store.close();
    }
}
