{{/* Base of all names, at most 40 characters so that suffixes fit. */}}
{{- define "duckmesh.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- default $full .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "duckmesh.operator" -}}{{ include "duckmesh.fullname" . }}-operator{{- end -}}
{{- define "duckmesh.devservices" -}}{{ include "duckmesh.fullname" . }}-devservices{{- end -}}
{{- define "duckmesh.devservices.host" -}}{{ include "duckmesh.devservices" . }}.{{ .Release.Namespace }}.svc{{- end -}}

{{/* Whether a switch is on that a release of an earlier chart may lack (helm upgrade --reuse-values). */}}
{{- define "duckmesh.on" -}}{{ ternary "" "true" (eq (toString .) "false") }}{{- end -}}

{{/* Labels of every object; call with (list . "component"). */}}
{{- define "duckmesh.labels" -}}
{{- $root := index . 0 -}}
{{ include "duckmesh.selector" . }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{/* Labels that never change; call with (list . "component"). */}}
{{- define "duckmesh.selector" -}}
app.kubernetes.io/name: duckmesh
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Full image name; call with (list . "runtime"). */}}
{{- define "duckmesh.image" -}}
{{- $root := index . 0 -}}
{{- $image := index $root.Values.images (index . 1) -}}
{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end -}}

{{- define "duckmesh.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "duckmesh.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "duckmesh.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Annotation of what outlives the release when it is asked to. */}}
{{- define "duckmesh.devservices.keep" -}}
{{- if .Values.devservices.persistence.keep -}}
annotations: {helm.sh/resource-policy: keep}
{{- end -}}
{{- end -}}

{{/* Peers that workers may reach for what devservices serves. */}}
{{- define "duckmesh.devservices.peers" -}}
- namespaceSelector:
    matchLabels: {kubernetes.io/metadata.name: {{ .Release.Namespace }}}
  podSelector:
    matchLabels:
      {{- include "duckmesh.selector" (list . "devservices") | nindent 6 }}
{{- end -}}

{{/* The operator's configuration file. */}}
{{- define "duckmesh.config" -}}
runtimeImage: {{ include "duckmesh.image" (list . "runtime") }}
sandboxImage: {{ include "duckmesh.image" (list . "sandbox") }}
runtimeVersion: {{ .Values.runtimeVersion | default .Chart.AppVersion | quote }}
imagePullPolicy: {{ .Values.images.pullPolicy }}
deletionProtection: {{ or .Values.admissionPolicy.install .Values.admissionPolicy.provided | default false }}
{{- with .Values.watchNamespaces }}
watchNamespaces: {{ toJson (uniq .) }}
{{- end }}
{{ toYaml .Values.operator.config }}
catalogs:
{{- range .Values.catalogs }}
  - name: {{ .name }}
    secretDir: /etc/duckmesh/catalogs/{{ .name }}
    adminSecret: {{ .secretName }}
    egress:
    {{- if and $.Values.devservices.enabled (eq .name "default") }}
      peers:
        {{- include "duckmesh.devservices.peers" $ | nindent 8 }}
    {{- else }}
      {{- toYaml (.egress | default dict) | nindent 6 }}
    {{- end }}
{{- end }}
stores:
{{- range .Values.stores }}
  - name: {{ .name }}
    secretDir: /etc/duckmesh/stores/{{ .name }}
    secret: {{ .secretName }}
    bucket: {{ .bucket }}
    region: {{ .region | default "us-east-1" }}
    {{- if and $.Values.devservices.enabled (eq .name "default") }}
    endpoint: http://{{ include "duckmesh.devservices.host" $ }}:8333
    egress:
      peers:
        {{- include "duckmesh.devservices.peers" $ | nindent 8 }}
    {{- else }}
    endpoint: {{ .endpoint | default "" | quote }}
    egress:
      {{- toYaml (.egress | default dict) | nindent 6 }}
    {{- end }}
{{- end }}
profiles:
  {{- toYaml .Values.profiles | nindent 2 }}
{{- end -}}
