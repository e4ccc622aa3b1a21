package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// kubelet is the real one, standalone: static pods only, no API server.
type kubelet struct {
	client http.Client
}

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: true}
  webhook: {enabled: false}
authorization: {mode: AlwaysAllow}
address: 127.0.0.1
readOnlyPort: 10255
healthzPort: 0
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /%[2]s
enforceNodeAllocatable: []
containerRuntimeEndpoint: unix://%[1]s/containerd.sock
staticPodPath: %[1]s/manifests
podLogsDir: %[1]s/logs
resolvConf: %[1]s/resolv.conf
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
fileCheckFrequency: 1s
failSwapOn: false
makeIPTablesUtilChains: false
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 1Mi, nodefs.available: 1Mi, imagefs.available: 1Mi, nodefs.inodesFree: "1", imagefs.inodesFree: "1"}
eventRecordQPS: 0
logging: {format: json, verbosity: 3}
`

type pod struct {
	Metadata struct {
		Name string `json:"name"`
		UID  string `json:"uid"`
	} `json:"metadata"`
	Status podStatus `json:"status"`
}

// podStatus is what is recorded of a status. Addresses are recorded as being there.
type podStatus struct {
	Phase                 string            `json:"phase"`
	Reason                string            `json:"reason,omitempty"`
	Message               string            `json:"message,omitempty"`
	Conditions            []condition       `json:"conditions"`
	InitContainerStatuses []containerStatus `json:"initContainerStatuses,omitempty"`
	ContainerStatuses     []containerStatus `json:"containerStatuses,omitempty"`
	QOSClass              string            `json:"qosClass"`
	HostIP                string            `json:"hostIP,omitempty"`
	PodIP                 string            `json:"podIP,omitempty"`
	AllocatedResources    json.RawMessage   `json:"allocatedResources,omitempty"`
	Resources             json.RawMessage   `json:"resources,omitempty"`
}

type condition struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

type containerStatus struct {
	Name               string          `json:"name"`
	State              state           `json:"state"`
	LastState          state           `json:"lastState"`
	Ready              bool            `json:"ready"`
	Started            *bool           `json:"started,omitempty"`
	RestartCount       int             `json:"restartCount"`
	Image              string          `json:"image"`
	AllocatedResources json.RawMessage `json:"allocatedResources,omitempty"`
	Resources          json.RawMessage `json:"resources,omitempty"`
	User               json.RawMessage `json:"user,omitempty"`
	VolumeMounts       json.RawMessage `json:"volumeMounts,omitempty"`
	StopSignal         string          `json:"stopSignal,omitempty"`
}

type state struct {
	Waiting    *waiting  `json:"waiting,omitempty"`
	Running    *struct{} `json:"running,omitempty"`
	Terminated *struct {
		ExitCode int    `json:"exitCode"`
		Signal   int    `json:"signal,omitempty"`
		Reason   string `json:"reason"`
		Message  string `json:"message,omitempty"`
	} `json:"terminated,omitempty"`
}

type waiting struct {
	Reason  string `json:"reason"`
	Message string `json:"message,omitempty"`
}

func startKubelet(ctx context.Context, o options) (*kubelet, error) {
	config := filepath.Join(root, "kubelet.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, kubeletConfig, root, cgroup), 0o644); err != nil {
		return nil, err
	}
	seccomp := filepath.Join(root, "kubelet/seccomp")
	if err := os.MkdirAll(seccomp, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(seccomp, "shape.json"), []byte(localhostProfile), 0o644); err != nil {
		return nil, err
	}
	err := spawn(ctx, "kubelet.log", []string{"PATH=" + o.tools + ":" + os.Getenv("PATH")}, filepath.Join(o.kubelet, "kubelet"),
		"--config", config, "--root-dir", filepath.Join(root, "kubelet"), "--cert-dir", filepath.Join(root, "pki"),
		"--hostname-override", nodeName, "--node-ip", hostAddress)
	if err != nil {
		return nil, err
	}
	k := &kubelet{client: http.Client{Timeout: o.slower(10 * time.Second)}}
	for end := time.Now().Add(o.slower(time.Minute)); ; pause(ctx, 100*time.Millisecond) {
		if _, err = k.pods(ctx); err == nil {
			return k, nil
		}
		if time.Now().After(end) {
			text, _ := os.ReadFile(filepath.Join(root, "kubelet.log"))
			return nil, fmt.Errorf("does not answer: %w\n%s", err, text[max(0, len(text)-3000):])
		}
	}
}

func (k *kubelet) manifest(s shape) string {
	return filepath.Join(root, "manifests", s.name+".yaml")
}

// pods asks the kubelet what it runs, by the manifest's name.
func (k *kubelet) pods(ctx context.Context) (map[string]pod, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:10255/pods", nil)
	if err != nil {
		return nil, err
	}
	answer, err := k.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	var list struct {
		Items []pod `json:"items"`
	}
	if err := json.NewDecoder(answer.Body).Decode(&list); err != nil {
		return nil, err
	}
	pods := map[string]pod{}
	for _, p := range list.Items {
		pods[strings.TrimSuffix(p.Metadata.Name, "-"+nodeName)] = p
	}
	return pods, nil
}

func describe(p pod) string {
	text, err := json.Marshal(p.Status)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

const localhostProfile = `{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],
"syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]}
`
