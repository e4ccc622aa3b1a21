package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// containerd of the recorder, with its CRI plugin on and everything below root.
type containerd struct {
	ctr, socket string
	// How long one command of ctr may take.
	patience time.Duration
}

const containerdConfig = `version = 3
root = "%[1]s/containerd/root"
state = "%[1]s/containerd/state"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs"]
[grpc]
  address = "%[1]s/containerd.sock"
[ttrpc]
  address = "%[1]s/containerd.sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/containerd/opt"
[plugins."io.containerd.shim.v1.manager"]
  socket_dir = "%[1]s/s"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "berth.test/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_hugetlb_controller = false
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["%[2]s"]
    conf_dir = "%[1]s/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        BinaryName = "%[2]s/runc"
        SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
`

const conflist = `{"cniVersion":"1.0.0","name":"berth-peers","plugins":[
{"type":"bridge","bridge":"berthpeer0","ipam":{"type":"host-local","dataDir":"%[1]s/cni-data",
"ranges":[[{"subnet":"10.245.77.0/24","rangeStart":"10.245.77.10"}]]}}]}
`

func startContainerd(ctx context.Context, o options) (*containerd, error) {
	tools := o.tools
	if err := os.MkdirAll(filepath.Join(root, "cni"), 0o755); err != nil {
		return nil, err
	}
	for path, text := range map[string]string{
		"containerd.toml":  fmt.Sprintf(containerdConfig, root, tools),
		"cni/10.conflist":  fmt.Sprintf(conflist, root),
		"resolv.conf":      "nameserver 192.0.2.53\nsearch example.test\n",
		"manifests/.empty": "",
	} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	c := &containerd{
		ctr: filepath.Join(tools, "ctr"), socket: filepath.Join(root, "containerd.sock"), patience: o.slower(time.Minute),
	}
	err := spawn(ctx, "containerd.log", []string{"PATH=" + tools + ":" + os.Getenv("PATH")},
		filepath.Join(tools, "containerd"), "--config", filepath.Join(root, "containerd.toml"))
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(o.slower(30 * time.Second)); ; pause(ctx, 50*time.Millisecond) {
		if _, err = c.run(ctx, "version"); err == nil {
			return c, nil
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("does not answer: %w", err)
		}
	}
}

// spawn starts a daemon that ends with the recorder's PID namespace at the latest.
func spawn(ctx context.Context, logName string, env []string, path string, args ...string) error {
	out, err := os.Create(filepath.Join(root, logName))
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = out, out
	return cmd.Start()
}

func (c *containerd) run(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.ctr, append([]string{"-a", c.socket, "-n", "k8s.io"}, args...)...)
	out, err := cmd.Output()
	if e, ok := err.(*exec.ExitError); ok {
		return nil, fmt.Errorf("ctr %s: %s", strings.Join(args, " "), e.Stderr)
	}
	return out, err
}

// criContainer is what the CRI plugin keeps about a container: the request of the kubelet.
type criContainer struct {
	Metadata struct {
		ID, SandboxID string
		Config        struct {
			Metadata struct {
				Name    string `json:"name"`
				Attempt int    `json:"attempt"`
			} `json:"metadata"`
			Command []string `json:"command"`
			Args    []string `json:"args"`
			Envs    []struct {
				Key   string `json:"key"`
				Value string `json:"value"`
			} `json:"envs"`
			Mounts []criMount      `json:"mounts"`
			Linux  json.RawMessage `json:"linux"`
		}
	}
}

type criMount struct {
	ContainerPath     string `json:"container_path"`
	HostPath          string `json:"host_path"`
	Readonly          bool   `json:"readonly"`
	Propagation       int    `json:"propagation"`
	RecursiveReadOnly bool   `json:"recursive_read_only"`
}

type record struct {
	ID         string
	Labels     map[string]string
	Image      string
	Spec       json.RawMessage
	Extensions map[string]struct {
		TypeURL string `json:"type_url"`
		Value   []byte `json:"value"`
	}
}

// made is what containerd holds of one pod: the newest container of each name, and the sandbox's sysctls.
type made struct {
	records  map[string]record
	requests map[string]criContainer
	sysctls  map[string]string
}

func (c *containerd) madeOf(ctx context.Context, uid string) (*made, error) {
	out, err := c.run(ctx, "containers", "ls", "-q", fmt.Sprintf("labels.%q==%s", "io.kubernetes.pod.uid", uid))
	if err != nil {
		return nil, err
	}
	m := made{records: map[string]record{}, requests: map[string]criContainer{}}
	for _, id := range strings.Fields(string(out)) {
		text, err := c.run(ctx, "containers", "info", id)
		if err != nil {
			return nil, err
		}
		var r record
		if err := json.Unmarshal(text, &r); err != nil {
			return nil, err
		}
		if r.Labels["io.cri-containerd.kind"] == "sandbox" {
			var spec struct {
				Linux struct {
					Sysctl map[string]string `json:"sysctl"`
				} `json:"linux"`
			}
			if err := json.Unmarshal(r.Spec, &spec); err != nil {
				return nil, err
			}
			m.sysctls = map[string]string{}
			maps.Copy(m.sysctls, spec.Linux.Sysctl)
			continue
		}
		var request criContainer
		extension, ok := r.Extensions["io.cri-containerd.container.metadata"]
		if !ok {
			return nil, fmt.Errorf("container %s has no CRI metadata: %s", id, text)
		}
		if err := json.Unmarshal(extension.Value, &request); err != nil {
			return nil, err
		}
		name := request.Metadata.Config.Metadata.Name
		if old, ok := m.requests[name]; ok && old.Metadata.Config.Metadata.Attempt > request.Metadata.Config.Metadata.Attempt {
			continue
		}
		m.records[name], m.requests[name] = r, request
	}
	return &m, nil
}
