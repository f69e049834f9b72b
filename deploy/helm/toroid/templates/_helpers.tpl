{{- define "toroid.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default (printf "%s%s" .Chart.AppVersion (ternary "-cuda" "" (gt (int .Values.worker.gpusPerPod) 0))) }}
{{- end }}

{{- define "toroid.labels" -}}
app.kubernetes.io/name: toroid
app.kubernetes.io/part-of: toroid
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "toroid.gone" -}}
- key: node.kubernetes.io/not-ready
  operator: Exists
  effect: NoExecute
  tolerationSeconds: {{ .Values.tolerationSeconds }}
- key: node.kubernetes.io/unreachable
  operator: Exists
  effect: NoExecute
  tolerationSeconds: {{ .Values.tolerationSeconds }}
{{- end }}

{{- /* Of all coordinators, by the names of their pods. */ -}}
{{- define "toroid.coordinators" -}}
{{- $all := list }}
{{- range until (int .Values.coordinator.replicas) }}
{{- $all = append $all (printf "toroid-coordinator-%d.toroid-coordinators:7070" .) }}
{{- end }}
{{- join "," $all }}
{{- end }}

{{- define "toroid.etcd" -}}
{{- if .Values.etcd.enabled -}}
https://toroid-etcd-0.toroid-etcd:2379,https://toroid-etcd-1.toroid-etcd:2379,https://toroid-etcd-2.toroid-etcd:2379
{{- else -}}
{{ .Values.etcd.endpoints }}
{{- end }}
{{- end }}

{{- define "toroid.devices" -}}
{{- $all := list }}
{{- range until (int .Values.worker.gpusPerPod) }}
{{- $all = append $all (printf "cuda:%d" .) }}
{{- end }}
{{- join "," $all }}
{{- end }}

{{- define "toroid.claim" -}}
{{ .Values.shared.existingClaim | default "toroid-shared" }}
{{- end }}
