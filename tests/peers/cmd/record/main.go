// Command record runs the shapes of tests/shapes on the real kubelet and containerd's CRI plugin and writes down
// what they made of them below tests/golden. See README.md of this module.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"syscall"
	"time"
)

// Everything lives below this directory, on a tmpfs of the recorder's own mount namespace.
const root = "/run/berth-peers"

// The cgroup that the kubelet works below, in every hierarchy.
const cgroup = "berth-peers"

const nodeName = "berth-peer"

const hostAddress = "10.245.77.1"

// How long after its status was recorded a pod is watched for more events.
const eventsLag = 3 * time.Second

// Set in the child that lives in namespaces of its own.
const insideEnv = "BERTH_PEERS_INSIDE"

type options struct {
	shapes, golden, base, tools, kubelet, only, kinds string
	atOnce, slow                                      int
	keep                                              bool
}

// slower is a deadline on a machine that is so many times slower than one without emulation.
func (o options) slower(d time.Duration) time.Duration { return d * time.Duration(o.slow) }

func main() {
	log.SetFlags(log.Ltime)
	log.SetPrefix("record: ")
	var o options
	flag.StringVar(&o.shapes, "shapes", "../shapes", "directory of pod manifests")
	flag.StringVar(&o.golden, "golden", "../golden", "directory to write the recordings to")
	flag.StringVar(&o.base, "base", "", "directory of recordings; only what differs from them is written")
	flag.StringVar(&o.tools, "tools", toolsDir(), "directory of containerd, its shim, runc, ctr and the CNI plugins")
	flag.StringVar(&o.kubelet, "kubelet", cached("peers"), "directory of the kubelet; `cargo xtask peers kubelet` builds it")
	flag.StringVar(&o.only, "only", "", "shapes to record, by comma; the others keep their recordings")
	flag.StringVar(&o.kinds, "kinds", "", "kinds of recordings to write (spec, status, events, output, cgroup), by comma; all where none is given")
	flag.IntVar(&o.atOnce, "at-once", 12, "pods at once")
	flag.IntVar(&o.slow, "slow", 1, "how many times longer than usual to wait for anything")
	flag.BoolVar(&o.keep, "keep-logs", false, "copy the logs of kubelet and containerd to the golden directory's parent")
	flag.Parse()
	var err error
	if os.Getenv(insideEnv) == "" {
		err = outside(o)
	} else {
		err = inside(o)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func toolsDir() string {
	if dir := os.Getenv("BERTH_TOOLS"); dir != "" {
		return dir
	}
	return cached("tools")
}

// cached is the directory of programs of this kind in the project's cache; empty where there is no cache.
func cached(kind string) string {
	cache, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(cache, "berth", kind, "bin")
}

// outside starts the recorder again in namespaces of its own and cleans up behind it. When that child ends, the kernel ends every process of its PID namespace and drops its mounts and network.
func outside(o options) error {
	for _, dir := range []*string{&o.shapes, &o.golden, &o.base, &o.tools, &o.kubelet} {
		if *dir == "" {
			continue
		}
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return err
		}
		*dir = abs
	}
	if _, err := os.Stat(filepath.Join(o.kubelet, "kubelet")); err != nil {
		return fmt.Errorf("run `cargo xtask peers kubelet`: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	runtime.LockOSThread() // the death signal of the child is tied to this thread
	cgroups, err := makeCgroups()
	defer removeCgroups(cgroups)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.golden, 0o755); err != nil {
		return err
	}
	cmd := exec.Command(self, "-shapes", o.shapes, "-golden", o.golden, "-tools", o.tools, "-kubelet", o.kubelet,
		"-base", o.base, "-only", o.only, "-kinds", o.kinds, "-at-once", fmt.Sprint(o.atOnce), "-slow", fmt.Sprint(o.slow),
		fmt.Sprintf("-keep-logs=%v", o.keep))
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS |
			syscall.CLONE_NEWIPC,
		Pdeathsig: syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-stop
		_ = cmd.Process.Kill()
	}()
	return cmd.Wait()
}

func inside(o options) error {
	ctx, cancel := context.WithTimeout(context.Background(), o.slower(40*time.Minute))
	defer cancel()
	if err := enterPrivateWorld(); err != nil {
		return fmt.Errorf("private namespaces: %w", err)
	}
	shapes, err := readShapes(o.shapes, o.only)
	if err != nil {
		return err
	}
	facts, err := hostFacts()
	if err != nil {
		return fmt.Errorf("host facts: %w", err)
	}
	if err := writeJSON(filepath.Join(o.golden, "host.json"), facts); err != nil {
		return err
	}
	cri, err := startContainerd(ctx, o)
	if err != nil {
		return fmt.Errorf("containerd: %w", err)
	}
	images, err := importImages(ctx, cri)
	if err != nil {
		return fmt.Errorf("images: %w", err)
	}
	if err := o.writeFile("images.json", images); err != nil {
		return err
	}
	kubelet, err := startKubelet(ctx, o)
	if err != nil {
		return fmt.Errorf("kubelet: %w", err)
	}
	defer func() {
		if o.keep {
			for _, name := range []string{"kubelet.log", "containerd.log"} {
				text, _ := os.ReadFile(filepath.Join(root, name))
				_ = os.WriteFile(filepath.Join(filepath.Dir(o.golden), name), text, 0o644)
			}
		}
	}()
	failed := (&recorder{o: o, c: cri, k: kubelet, log: eventLog{events: map[string][]event{}}}).all(ctx, shapes)
	if len(failed) > 0 {
		sort.Strings(failed)
		return errors.New(strings.Join(failed, "\n"))
	}
	log.Printf("%d shapes, %d of them skipped", len(shapes), skipped(shapes))
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
