{{- define "synap.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "synap.valkeyName" -}}{{ include "synap.fullname" . }}-valkey{{- end -}}

{{- define "synap.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "synap.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: node
{{- end -}}

{{- define "synap.valkeySelector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: valkey
{{- end -}}

{{- /* The server needs after SIGTERM twice the drain timeout, and some seconds for slow consumers. */ -}}
{{- define "synap.gracePeriod" -}}
{{ add .Values.preStopSeconds (mul 2 .Values.drainTimeoutSeconds) 15 }}
{{- end -}}

{{- define "synap.keysSecret" -}}
{{ .Values.keys.existingSecret | default (printf "%s-keys" (include "synap.fullname" .)) }}
{{- end -}}

{{- /* The URL of the store, in the environment of a node. */ -}}
{{- define "synap.storeEnv" -}}
{{- if .Values.valkey.enabled -}}
- name: VALKEY_PASSWORD
  valueFrom: {secretKeyRef: {{ include "synap.valkeyPasswordRef" . }}}
- name: SYNAP_REALTIME_STORE
  value: valkey+sentinel://:$(VALKEY_PASSWORD)@{{ include "synap.valkeyPeers" (list . 26379 ",") }}/main?durability={{ .Values.valkey.durability }}
{{- else -}}
- name: SYNAP_REALTIME_STORE
  valueFrom:
    secretKeyRef:
      {{- if .Values.store.existingSecret }}
      name: {{ .Values.store.existingSecret }}
      key: {{ .Values.store.existingSecretKey }}
      {{- else }}
      name: {{ include "synap.fullname" . }}-store
      key: url
      {{- end }}
{{- end -}}
{{- end -}}

{{- define "synap.valkeyPasswordRef" -}}
{{- with .Values.valkey.auth -}}
{{- if .existingSecret -}}
{name: {{ .existingSecret }}, key: {{ .existingSecretKey }}}
{{- else -}}
{name: {{ include "synap.valkeyName" $ }}, key: password}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* name:port of every pod of Valkey. Arguments: the context, the port, the separator. */ -}}
{{- define "synap.valkeyPeers" -}}
{{- $top := index . 0 -}}{{- $port := index . 1 -}}
{{- $name := include "synap.valkeyName" $top -}}
{{- $peers := list -}}
{{- range $number := until (int $top.Values.valkey.replicas) -}}
{{- $peers = append $peers (printf "%s-%d.%s-pods:%v" $name $number $name $port) -}}
{{- end -}}
{{- join (index . 2) $peers -}}
{{- end -}}

{{- /* Errors that a schema cannot state. */ -}}
{{- define "synap.check" -}}
{{- $v := .Values -}}
{{- if not (or $v.keys.existingSecret $v.keys.toml) -}}
{{- fail "keys: the server needs keys. Create them with: synap-realtime generate-keys --out keys.toml; then add --set-file keys.toml=keys.toml, or create a Secret from the file and set keys.existingSecret" -}}
{{- end -}}
{{- if and $v.keys.existingSecret $v.keys.toml -}}
{{- fail "keys: set either keys.existingSecret or keys.toml, not both" -}}
{{- end -}}
{{- /* Not in the schema, whose errors repeat the value: it contains a password. */ -}}
{{- if not (regexMatch "^$|^(redis|valkey)s?([+][a-z]+)?://[^[:space:]]+$" $v.store.url) -}}
{{- fail "store.url: expected redis://, rediss://, redis+sentinel://, redis+cluster:// or the same with valkey" -}}
{{- end -}}
{{- if and $v.store.url $v.store.existingSecret -}}
{{- fail "store: set either store.url or store.existingSecret, not both" -}}
{{- end -}}
{{- if and $v.valkey.enabled (or $v.store.url $v.store.existingSecret) -}}
{{- fail "store: the nodes use the Valkey of this chart. For your own, add valkey.enabled=false; otherwise remove store.url and store.existingSecret" -}}
{{- end -}}
{{- if not (or $v.valkey.enabled $v.store.url $v.store.existingSecret) -}}
{{- fail "store: without valkey.enabled, set store.url or store.existingSecret: several nodes need a Redis or Valkey that they share" -}}
{{- end -}}
{{- if $v.autoscaling.enabled -}}
{{- if gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas) -}}
{{- fail "autoscaling: minReplicas is greater than maxReplicas" -}}
{{- end -}}
{{- if not (or $v.autoscaling.connections $v.autoscaling.cpuPercent) -}}
{{- fail "autoscaling: connections and cpuPercent are both 0; set one of them" -}}
{{- end -}}
{{- end -}}
{{- if and $v.serviceMonitor.enabled (not $v.serviceMonitor.credentials.name) -}}
{{- fail "serviceMonitor: set serviceMonitor.credentials.name to a Secret with a key of the scope \"metrics\"; without it the nodes answer 401" -}}
{{- end -}}
{{- end -}}
